"""Several objects in one member: only what is asked for is linked, and damage is an error."""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

import dhc_runtime
from dhc_runtime.code_archive import CodeArchive, read_archive, write_archive
from dhc_runtime.cpu_features import host_arch
from dhc_runtime.errors import ArtifactError

from tests.runtime.artifacts import chain, code_object, compile_llvm, make_artifact


def function(name: str, value: int) -> bytes:
    return compile_llvm(f"define i64 @{name}() {{\n ret i64 {value}\n}}")


@pytest.fixture(scope="module")
def archive() -> bytes:
    return write_archive({"second": function("second", 2), "first": function("first", 1), "odd": b"not an object"})


def test_functions_are_found_and_linked_when_asked_for(archive: bytes) -> None:
    code = CodeArchive(archive)
    for name, value in (("first", 1), ("second", 2), ("first", 1)):
        assert ctypes.CFUNCTYPE(ctypes.c_int64)(code.address(name))() == value
    with pytest.raises(ArtifactError, match="no function 'third'"):
        code.address("third")
    with pytest.raises(ArtifactError, match="odd in"):
        code.address("odd")


def test_equal_objects_give_equal_bytes(archive: bytes) -> None:
    assert archive == write_archive(
        {"second": function("second", 2), "first": function("first", 1), "odd": b"not an object"}
    )
    assert archive.startswith(b"!<arch>\n")
    assert {name: bytes(data) for name, data in read_archive(write_archive({"a": b"", "b": b"x"})).items()} == {
        "a": b"",
        "b": b"x",
    }


def test_damage_is_an_artifact_error_or_harmless(archive: bytes) -> None:
    rng = random.Random(5)
    refused = 0
    for _ in range(400):
        damaged = bytearray(archive)
        place = rng.choice((rng.randrange(200), rng.randrange(len(damaged))))
        damaged[place] = rng.randrange(256)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            read_archive(damaged)
        except ArtifactError:
            refused += 1
    assert refused > 100


def test_a_session_runs_from_an_archive() -> None:
    plan = chain(3)
    names = ["dhc_team", "k_add", "k_double", "k_copy"]
    # Each object may define more than the function it is listed for.
    archive = write_archive({name: code_object() for name in names})
    devices = {"cpu": {"arch": host_arch(), "features": [], "object": "cpu/code.a"}}
    program = {"format": 1, "program": plan.program()}
    data = make_artifact(program, plan.weights, archive, "cpu/code.a", devices=devices)
    with dhc_runtime.load(data, threads=2) as session:
        x = np.ones((3, 4), np.float32)
        assert np.array_equal(session.run(x)["y"], x * 8)
