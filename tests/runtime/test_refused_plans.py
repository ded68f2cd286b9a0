"""Execution plans that make no sense: each is refused when it is loaded, and the message names what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime.container import write_artifact
from dhc_runtime.cpu_features import host_arch
from dhc_runtime.errors import ArtifactError

from tests.runtime.artifacts import chain, compile_llvm, make_artifact

EMPTY: dict[str, Any] = {"symbols": [], "inputs": [], "outputs": [], "buffers": [], "items": []}


def changed(change: Any) -> bytes:
    program = chain().program()
    change(program)
    return make_artifact({"format": 1, "program": program}, chain().weights)


def put(*path: Any, value: Any) -> Any:
    def change(program: Any) -> None:
        for key in path[:-1]:
            program = program[key]
        program[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("buffers", value=None), "not a list"),
        (put("items", 0, "do", value="dance"), "'dance' is unknown"),
        (put("items", 0, "buffers", value=[0, 99]), "does not exist"),
        (put("items", 0, "buffers", value=[-1]), "does not exist"),
        (put("items", 0, "symbol", value="k_none"), "lacks functions: k_none"),
        (put("items", 0, "params", value=["Q"]), "Q is not known here"),
        (put("items", 0, "params", value=[1.5]), "not a size expression"),
        (put("items", 0, value=7), "table is expected"),
        (put("buffers", 0, "dtype", value="f33"), "'f33' is unknown"),
        (put("buffers", 0, "kind", value="magic"), "'magic' is unknown"),
        (put("buffers", 0, "shape", value=[-3]), "not a shape"),
        (put("buffers", 1, "constant", value="nothing"), "lack the tensor 'nothing'"),
        (put("buffers", 1, "shape", value=[5]), "wrong size"),
        (put("buffers", 3, "bytes", value="Q"), "size of buffer 3 is never known"),
        (put("buffers", 3, "first", value=1), "outside of the lifetime"),
        (put("buffers", 3, "last", value=99), "number from"),
        (put("inputs", 0, "buffer", value=1), "not an input buffer"),
        (put("inputs", value=[]), "belong to no input"),
        (put("inputs", 0, "shape", value=[["*", "N", "N"], 4]), "does not determine N"),
        (put("constraints", value=[["N", 1]]), "constraint is not"),
        (put("constraints", value=[["Q", 1, "m"]]), "never known"),
        (put("symbols", value=["N", "N"]), "distinct"),
        (put("items", 0, value={"do": "loop"}), "'results' is missing"),
    ],
)
def test_plans_that_make_no_sense_are_refused_at_load(change: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        dhc_runtime.load(changed(change), threads=1)


def test_alias_cycles_and_formats_are_refused() -> None:
    def cycle(program: Any) -> None:
        program["buffers"] += [
            {"kind": "alias", "dtype": "f32", "shape": [1], "bytes": 4, "of": len(program["buffers"]), "offset": 0}
        ]

    with pytest.raises(ArtifactError, match="alias of itself"):
        dhc_runtime.load(changed(cycle), threads=1)
    with pytest.raises(ArtifactError, match="format 2"):
        dhc_runtime.load(make_artifact({"format": 2, "program": {}}, {}), threads=1)
    with pytest.raises(ArtifactError, match=r"no member 'plan\.json'"):
        dhc_runtime.load(write_artifact(None, {}, {"x": b""}))
    empty = {"format": 1, "program": EMPTY}
    with pytest.raises(ArtifactError, match="no function 'dhc_team'"):
        dhc_runtime.load(make_artifact(empty, {}, compile_llvm("define void @f() {\n ret void\n}")), threads=1)
    with pytest.raises(ArtifactError, match="no member 'gone'"):
        device = {"arch": host_arch(), "features": [], "object": "gone"}
        dhc_runtime.load(make_artifact(empty, {}, devices={"cpu": device}))


def test_deep_nesting_is_refused() -> None:
    chain_of_ifs = EMPTY
    for _ in range(40):
        buffers = [{"kind": "const", "dtype": "bool", "shape": [], "bytes": 1, "constant": "c"}]
        item = {"do": "if", "cond": 0, "then": chain_of_ifs, "else": EMPTY, "results": [], "bind": []}
        chain_of_ifs = {"symbols": [], "inputs": [], "outputs": [], "buffers": buffers, "items": [item]}
    with pytest.raises(ArtifactError, match="nested more than"):
        dhc_runtime.load(make_artifact({"format": 1, "program": chain_of_ifs}, {"c": np.array(True)}), threads=1)
