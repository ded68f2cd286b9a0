"""The whole artifact of a model that was compiled before: the same bytes, found only where everything is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dhc import artifact_cache
from dhc.artifact_cache import ArtifactCache, file_digest


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DHC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artifacts"


def test_the_second_compile_copies_the_first(dhc, cached, classifier, tmp_path):
    first = dhc("compile", classifier, "-o", tmp_path / "a.dhc", "--json").data
    second = dhc("compile", classifier, "-o", tmp_path / "b.dhc", "--json").data
    assert (tmp_path / "a.dhc").read_bytes() == (tmp_path / "b.dhc").read_bytes()
    assert "whole" not in first and second["whole"] is True and second["compiled"] == 0
    assert list(second["seconds"]) == ["reading the cache"]
    changing = ("seconds", "passes", "compiled", "cached", "whole", "artifact", "next")
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in second.items() if k not in changing
    }
    assert not (tmp_path / "b.dhc").samefile(next(cached.glob("*.dhc")))  # writing into one changes no other


@pytest.mark.parametrize(
    "words",
    [("--exact",), ("--threads", "1"), ("--cpu", "x86-64-v2"), ("--precision", "bf16"), ("--no-cache",), ("--verify",)],
    ids=lambda words: words[0],
)
def test_other_options_are_not_taken_for_the_same(dhc, cached, classifier, tmp_path, words):
    dhc("compile", classifier, "-o", tmp_path / "a.dhc")
    assert "whole" not in dhc("compile", classifier, "-o", tmp_path / "b.dhc", "--json", *words).data


def test_another_model_name_or_compiler_is_not_taken_for_the_same(dhc, cached, classifier, tmp_path, monkeypatch):
    dhc("compile", classifier, "-o", tmp_path / "a.dhc")
    renamed = shutil.copy(classifier, tmp_path / "renamed.onnx")
    assert "whole" not in dhc("compile", renamed, "-o", tmp_path / "b.dhc", "--json").data
    monkeypatch.setattr(artifact_cache, "compiler_version", lambda: "another")
    assert "whole" not in dhc("compile", classifier, "-o", tmp_path / "c.dhc", "--json").data


@pytest.mark.parametrize("damage", ["changed", "shorter", "table"])
def test_a_damaged_entry_is_made_again(dhc, cached, classifier, tmp_path, damage):
    dhc("compile", classifier, "-o", tmp_path / "a.dhc")
    good = (tmp_path / "a.dhc").read_bytes()
    entry = next(cached.glob("*.dhc"))
    if damage == "table":
        entry.with_suffix(".json").write_text('{"digest": "0"')
    else:
        entry.unlink()
        middle = len(good) // 2
        rest = b"" if damage == "shorter" else bytes([good[middle] ^ 1]) + good[middle + 1 :]
        entry.write_bytes(good[:middle] + rest)
    again = dhc("compile", classifier, "-o", tmp_path / "b.dhc", "--json").data
    assert "whole" not in again and (tmp_path / "b.dhc").read_bytes() == good
    assert dhc("compile", classifier, "-o", tmp_path / "b.dhc", "--json").data["whole"] is True


def test_run_takes_what_compile_kept(dhc, cached, classifier, tmp_path):
    words = ("run", classifier, "--input", "image=random", "--json")
    first, second = dhc(*words).data, dhc(*words).data
    assert "compile" in first["seconds"] and set(second["seconds"]) == {"load", "run"}
    assert first["outputs"] == second["outputs"]
    assert dhc("compile", classifier, "-o", tmp_path / "a.dhc", "--json").data["whole"] is True


def test_models_with_weights_elsewhere_are_not_kept(dhc, cached, classifier, tmp_path):
    import onnx

    model = onnx.load(classifier)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    dhc("compile", tmp_path / "m.onnx", "-o", tmp_path / "a.dhc")
    assert not list(cached.glob("*.dhc"))


@pytest.mark.parametrize("start", [0, 92, 93, 99, 100, 242])
def test_the_name_of_another_file_is_found_wherever_it_stands(tmp_path, monkeypatch, start):
    monkeypatch.setattr(artifact_cache, "_PIECE", 100)
    content = bytearray(250)
    (tmp_path / "model").write_bytes(content)
    assert artifact_cache.is_whole(tmp_path / "model")
    content[start : start + 8] = b"location"
    (tmp_path / "model").write_bytes(content)
    assert not artifact_cache.is_whole(tmp_path / "model")


def test_the_least_recently_used_go_first(tmp_path):
    import os

    cache = ArtifactCache(tmp_path / "cache", limit=4000)
    for number in range(4):
        (tmp_path / f"{number}.dhc").write_bytes(bytes([number]) * 900)
        assert cache.add(str(number), tmp_path / f"{number}.dhc", {})
        os.utime(cache.folder / f"{number}.json", (number, number))
    assert cache.find("0") is not None  # used now, so it stays
    (tmp_path / "4.dhc").write_bytes(b"4" * 900)
    assert cache.add("4", tmp_path / "4.dhc", {})
    assert [cache.find(str(n)) is not None for n in range(5)] == [True, False, True, True, True]
    (tmp_path / "large.dhc").write_bytes(b"5" * 1001)
    assert not cache.add("large", tmp_path / "large.dhc", {})
    assert cache.clear() == 4 and cache.find("0") is None


def test_the_digest_covers_every_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact_cache, "_PIECE", 100)
    content = bytes(range(250))
    (tmp_path / "file").write_bytes(content)
    digest, size = file_digest(tmp_path / "file")
    assert size == 250
    for position in (0, 99, 100, 249):
        changed = bytearray(content)
        changed[position] ^= 1
        (tmp_path / "file").write_bytes(changed)
        assert file_digest(tmp_path / "file")[0] != digest


def test_extensions_turn_it_off(classifier, monkeypatch):
    assert artifact_cache.model_key(classifier, {}, None) is not None
    monkeypatch.setattr(artifact_cache.metadata, "entry_points", lambda group: [object()])
    assert artifact_cache.model_key(classifier, {}, None) is None
