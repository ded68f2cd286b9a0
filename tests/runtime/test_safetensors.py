"""The weights file: written aligned, read strictly."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from dhc_runtime.errors import ArtifactError
from dhc_runtime.safetensors import ALIGNMENT, Tensor, parse, serialize

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.uint8),
    "c": np.array([True, False, True]),
}
NAMES = {"float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def tensors() -> dict[str, Tensor]:
    return {name: Tensor(NAMES[array.dtype.name], array.shape, array) for name, array in ARRAYS.items()}


def test_round_trip_and_alignment() -> None:
    data = serialize(tensors())
    specs = parse(data)
    assert set(specs) == set(ARRAYS)
    for name, spec in specs.items():
        assert spec.shape == ARRAYS[name].shape
        assert data[spec.start : spec.stop] == ARRAYS[name].tobytes()
        assert spec.start % ALIGNMENT == 0 or spec.start == spec.stop
    assert (8 + struct.unpack("<Q", data[:8])[0]) % ALIGNMENT == 0


def test_the_order_of_tensors_does_not_change_the_bytes() -> None:
    assert serialize(tensors()) == serialize(dict(reversed(list(tensors().items()))))


def test_the_public_package_reads_it() -> None:
    library = pytest.importorskip("safetensors.numpy", reason="the safetensors package is not installed")
    loaded = library.load(serialize(tensors()))
    for name, array in ARRAYS.items():
        assert np.array_equal(loaded[name], array)


def test_files_of_the_public_package_are_read() -> None:
    library = pytest.importorskip("safetensors.numpy", reason="the safetensors package is not installed")
    data = library.save(ARRAYS, metadata={"format": "np"})
    for name, spec in parse(data).items():
        assert data[spec.start : spec.stop] == ARRAYS[name].tobytes()


def test_a_size_that_does_not_fit_is_refused_when_writing() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        serialize({"a": Tensor("F32", (3,), np.zeros(4, dtype=np.float32))})


def file_of(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (struct.pack("<Q", 1 << 62), "declare a header"),
        (struct.pack("<Q", 17 << 20) + bytes(18 << 20), "declare a header"),
        (file_of(b"{"), "not valid JSON"),
        (file_of(b"[" * 100_000), "not valid JSON"),
        (file_of(b"\xff"), "not valid JSON"),
        (file_of([]), "not a JSON table"),
        (file_of(b'{"a": 1, "a": 2}'), "twice"),
        (file_of({"a": 5}), "needs exactly"),
        (file_of({"a": {**GOOD, "more": 1}}), "needs exactly"),
        (file_of({"a": {**GOOD, "dtype": "F33"}}), "unknown"),
        (file_of({"a": {**GOOD, "dtype": []}}), "unknown"),
        (file_of({"a": {**GOOD, "shape": [-2]}}), "not a list of sizes"),
        (file_of({"a": {**GOOD, "shape": [True, 2]}}), "not a list of sizes"),
        (file_of({"a": {**GOOD, "shape": [1 << 36]}}), "do not fit"),
        (file_of({"a": {**GOOD, "data_offsets": [0]}}), "pair"),
        (file_of({"a": {**GOOD, "data_offsets": [8, 0]}}), "do not fit"),
        (file_of({"a": {**GOOD, "shape": [4], "data_offsets": [0, 16]}}), "do not fit"),
        (file_of({"a": GOOD, "b": GOOD}), "overlap"),
        (file_of({"a": {**GOOD, "shape": [1], "data_offsets": [4, 8]}}), "holes"),
        (file_of({"a": GOOD}, bytes(12)), "no tensor"),
    ],
)
def test_malformed_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        parse(data)


def test_too_many_tensors_are_refused() -> None:
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(ArtifactError, match="at most"):
        parse(file_of({str(i): entry for i in range(100_001)}, b""))
