"""Artifacts that were cut, changed, or made for another machine: one clear error before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dhc_runtime
from dhc_runtime.container import ArtifactReader, write_artifact
from dhc_runtime.errors import ArtifactError, DhcError

import dhc
from tests.models import light_models
from tests.robustness.conftest import one_paragraph

Child = Callable[..., dict[str, Any]]

_DAMAGE = """
import os, random
source, folder, kind = sys.argv[1:]
data = open(source, "rb").read()
rng = random.Random(20 if kind == "cut" else 21)
path = os.path.join(folder, "damaged.dhc")
before = start()
outcomes = []
for _ in range(50 if kind == "cut" else 200):
    offset = rng.randrange(len(data))
    if kind == "cut":
        damaged = data[:offset]
    else:
        damaged = bytearray(data)
        damaged[offset] ^= 1 << rng.randrange(8)
    with open(path, "wb") as stream:
        stream.write(damaged)
    del damaged
    try:
        dhc_runtime.load(path).close()
        outcomes.append([offset, "loaded", ""])
    except DhcError as error:
        outcomes.append([offset, type(error).__name__, str(error)])
print(json.dumps({"outcomes": outcomes, "grown": peak() - before, "size": len(data)}))
"""


@pytest.mark.parametrize(("kind", "count"), [("cut", 50), ("flip", 200)])
def test_cut_and_changed_artifacts_are_refused(
    artifact: Path, tmp_path: Path, measured_child: Child, kind: str, count: int
) -> None:
    result = measured_child(_DAMAGE, str(artifact), str(tmp_path), kind)
    assert result["size"] > 2_000_000
    assert len(result["outcomes"]) == count
    wrong = [
        outcome for outcome in result["outcomes"] if outcome[1] != "ArtifactError" or not one_paragraph(outcome[2])
    ]
    assert not wrong


@pytest.mark.parametrize("region", ["manifest", "code", "plan", "weights", "directory"])
def test_a_bit_of_every_part_counts(artifact: Path, region: str) -> None:
    """Random offsets mostly hit the weights; the small parts are hit on purpose."""
    data = bytearray(artifact.read_bytes())
    needles = {"manifest": b'"producer"', "code": b"!<arch>", "plan": b'"program"', "directory": b"PK\x01\x02"}
    place = len(data) // 2 if region == "weights" else data.index(needles[region])
    data[place] ^= 0x04
    with pytest.raises(ArtifactError) as caught:
        dhc_runtime.load(bytes(data))
    assert one_paragraph(str(caught.value))


def test_the_command_line_says_it_in_one_paragraph(artifact: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cut.dhc"
    damaged.write_bytes(artifact.read_bytes()[:100_000])
    command = [sys.executable, "-m", "dhc.cli", "inspect", str(damaged)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 6
    assert done.stderr.startswith("error: ")
    assert one_paragraph(done.stderr)


def test_code_for_another_architecture() -> None:
    other = "aarch64" if dhc_runtime.cpu_features.host_arch() == "x86_64" else "x86-64-v2"
    foreign = dhc.compile(dhc.load_onnx(light_models.path_of("light_squeezenet")), cpu=other, cache=False)
    with pytest.raises(ArtifactError) as caught:
        foreign.session()
    assert "compiled for" in str(caught.value)
    assert one_paragraph(str(caught.value))


def test_code_that_needs_what_this_cpu_lacks(artifact: Path) -> None:
    with ArtifactReader(artifact) as reader:
        members = {name: bytes(reader.member(name)) for name in reader.members if name != "manifest.json"}
        manifest = json.loads(bytes(reader.member("manifest.json")))
    manifest["devices"]["cpu"]["features"] = ["avx99f", *manifest["devices"]["cpu"]["features"], "dreams"]
    with pytest.raises(ArtifactError) as caught:
        dhc_runtime.load(write_artifact(None, manifest, members))
    assert "avx99f, dreams" in str(caught.value)
    assert one_paragraph(str(caught.value))


@pytest.mark.parametrize("flag", ["avx2", "asimd"])
def test_a_cpu_without_the_vectors_of_the_code_is_asked_first(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    features = dhc_runtime.cpu_features.host_features()
    if flag not in json.dumps(dhc_runtime.load(artifact).manifest["devices"]["cpu"]["features"]):
        pytest.skip(f"this CPU's code does not use {flag}")
    monkeypatch.setattr("dhc_runtime.cpu_features._cache", features - {flag})
    with pytest.raises(DhcError, match=flag) as caught:
        dhc_runtime.load(artifact)
    assert one_paragraph(str(caught.value))
