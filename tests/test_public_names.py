"""`import dhc` is light, every public name resolves, and versions and layers say the same everywhere."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dhc

HEAVY = ("numba", "llvmlite", "onnx", "onnxruntime", "networkx", "pydantic", "typer", "rich", "PIL", "sklearn", "scipy")


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_no_heavy_package() -> None:
    assert _modules_after("import dhc") & {*HEAVY, "numpy"} == set()


def test_the_runtime_imports_numpy_alone_and_nothing_of_the_compiler() -> None:
    assert _modules_after("import dhc_runtime; dhc_runtime.load") & {*HEAVY, "dhc"} == set()


@pytest.mark.parametrize("name", sorted(dhc._LAZY))
def test_public_name_resolves(name: str) -> None:
    assert getattr(dhc, name) is not None
    assert name in dir(dhc) and name in dhc.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = dhc.no_such_thing


def test_versions_agree(repository: Path) -> None:
    compiler = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime = tomllib.loads((repository / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert compiler["version"] == dhc.__version__
    assert f"dhc-runtime=={runtime['version']}" in compiler["dependencies"]
    assert runtime["dependencies"] == ["numpy>=1.21"]


def test_every_package_has_a_place_in_the_layer_contracts(repository: Path) -> None:
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    named = {layer for contract in settings["contracts"] for layer in contract.get("layers", [])}
    packages = {f"dhc.{path.parent.name}" for path in (repository / "dhc").glob("*/__init__.py")}
    assert packages <= named
