"""Features of the host, in the names of /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhc_runtime import cpu_features
from dhc_runtime.errors import ArtifactError


def test_the_host_has_what_it_says() -> None:
    features = cpu_features.host_features()
    baseline = {"x86_64": {"sse2", "fpu"}, "aarch64": {"asimd", "fp"}}[cpu_features.host_arch()]
    assert baseline <= features
    cpu_features.check(sorted(features), cpu_features.host_arch())


def test_missing_features_are_all_named_with_the_remedy() -> None:
    with pytest.raises(ArtifactError, match=r"lacks: teleport, warp9 \(at m\.dhc\).*--cpu") as caught:
        cpu_features.check(["warp9", "teleport"], cpu_features.host_arch(), "m.dhc")
    assert caught.value.exit_code == 6


def test_another_architecture() -> None:
    with pytest.raises(ArtifactError, match="compiled for sparc"):
        cpu_features.check([], "sparc")


def test_only_what_all_cores_have_counts() -> None:
    text = "processor: 0\nFeatures\t: fp asimd sve\n\nprocessor: 1\nFeatures\t: fp asimd\n"
    assert cpu_features._parse_cpuinfo(text) == {"fp", "asimd"}
    assert cpu_features._parse_cpuinfo("flags\t\t: fpu avx2\nbugs : none\n") == {"fpu", "avx2"}
    assert cpu_features._parse_cpuinfo("") == frozenset()


def test_names_of_other_systems() -> None:
    assert cpu_features._normal("SSE4.1") == "sse4_1"
    assert cpu_features._normal("AVX1.0") == "avx"
    assert cpu_features._normal("NEON") == "asimd"


def test_many_processors_are_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of processors take megabytes; a list cut in the middle of a line would lose features."""
    line = "flags\t\t: fpu sse2 avx2 " + " ".join(f"feature{i}" for i in range(150)) + "\n"
    listing = tmp_path / "cpuinfo"
    listing.write_text(line * 2000)
    opened = open

    def fake(path: object, *args: object, **kwargs: object) -> object:
        return opened(listing if path == "/proc/cpuinfo" else path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", fake)
    monkeypatch.setattr(cpu_features, "_cache", None)
    assert {"avx2", "feature149"} <= cpu_features.host_features()
