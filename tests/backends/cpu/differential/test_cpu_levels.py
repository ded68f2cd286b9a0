"""Every level of x86-64 on this machine, code for AArch64 without running it, and artifacts of other processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import dhc_runtime
from dhc_runtime.cpu_features import host_arch, host_features
from dhc_runtime.errors import ArtifactError

import dhc
from dhc.backends.cpu.target import required_features, target
from dhc.ir import Graph
from dhc.ir.kinds import Contract, Elementwise, Map, Opaque, Reduce
from dhc.passes.decompose import Decompose
from tests.backends.cpu.differential.models import MODELS, inputs_of
from tests.backends.cpu.differential.running import assert_close, check_case, run
from tests.backends.cpu.differential.test_random_graphs import search

LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def need(level: str) -> None:
    """Skips when this machine cannot run the code."""
    if host_arch() != "x86_64":
        pytest.skip(f"this machine is {host_arch()}, not x86-64")
    missing = sorted(set(required_features(target(level))) - set(host_features()))
    if missing:
        pytest.skip(f"this machine lacks {', '.join(missing)}, which {level} needs")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_models_on_every_level(model: Callable[[], Graph], level: str) -> None:
    need(level)
    graph = model()
    artifact = dhc.compile(graph, cpu=level)
    assert artifact.manifest["devices"]["cpu"]["features"] == required_features(target(level))
    inputs = inputs_of(graph)
    for wanted, found in zip(graph.evaluate(**inputs), run(artifact.session(threads=2), graph, inputs), strict=True):
        assert_close(wanted, found, roundings=400, what=f"{graph.name} on {level}")


@pytest.mark.parametrize("level", LEVELS)
def test_random_graphs_on_every_level(level: str) -> None:
    need(level)
    search(7000, 40, lambda case: check_case(case, cpu=level))


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_aarch64_compiles(model: Callable[[], Graph]) -> None:
    artifact = dhc.compile(model(), cpu="aarch64")
    device = artifact.manifest["devices"]["cpu"]
    assert device["arch"] == "aarch64" and "asimd" in device["features"]
    if host_arch() != "aarch64":
        with pytest.raises(ArtifactError, match=f"compiled for aarch64 and this machine is {host_arch()}") as caught:
            artifact.session()
        assert "--cpu host" in str(caught.value)


def with_device(artifact: Any, **changes: Any) -> bytes:
    """The artifact with another description of its processor, all hashes in order."""
    from dhc_runtime.container import write_artifact

    manifest = json.loads(json.dumps(artifact.manifest))
    manifest["devices"]["cpu"].update(changes)
    data: bytes = write_artifact(None, manifest, artifact._members)
    return data


def test_features_that_the_machine_lacks_are_named() -> None:
    artifact = dhc.compile(MODELS["dense"]())
    features = [*artifact.manifest["devices"]["cpu"]["features"], "amx_complex", "sve9"]
    with pytest.raises(ArtifactError, match="lacks: amx_complex, sve9") as caught:
        dhc_runtime.load(with_device(artifact, features=features))
    assert "--cpu host" in str(caught.value)


def test_code_of_another_processor_than_described_is_refused() -> None:
    """The manifest may lie; the code itself tells its machine."""
    if host_arch() != "x86_64":
        pytest.skip(f"this machine is {host_arch()}, not x86-64")
    artifact = dhc.compile(MODELS["dense"](), cpu="aarch64")
    with pytest.raises(ArtifactError, match=r"(?i)aarch64|machine|x86"):
        dhc_runtime.load(with_device(artifact, arch="x86_64", features=["sse2"]))


def test_every_kind_of_kernel_is_among_the_models() -> None:
    """What the levels were tested on: element-wise, moving, reducing, contracting and opaque ops."""
    kinds = set()
    for model in MODELS.values():
        graph = model().clone()
        Decompose().run(graph)
        kinds |= {type(node.op.kind) for node in graph}
    assert {Elementwise, Map, Reduce, Contract, Opaque} <= kinds, kinds
