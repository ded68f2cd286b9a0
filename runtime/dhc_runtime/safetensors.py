"""Reading and writing the safetensors format: an 8-byte header length, a JSON header, and the data.

The format is that of https://github.com/huggingface/safetensors. The writer pads the header with spaces so that the
data starts at a multiple of 64 bytes, and puts every tensor at a multiple of 64: mapped from a file, tensors are
aligned for vector loads. The reader takes any valid file, including unaligned ones.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Tuple, Union

from dhc_runtime.errors import ArtifactError
from dhc_runtime.strict_json import parse_table

__all__ = ["ALIGNMENT", "Tensor", "TensorSpec", "header_and_layout", "parse", "serialize", "serialize_chunks"]

ALIGNMENT = 64
MAX_TENSORS = 100_000
MAX_HEADER_BYTES = 16 << 20
_MAX_RANK = 64

_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip

Buffer = Union[bytes, bytearray, memoryview]


class TensorSpec(NamedTuple):
    """Where a tensor lies in the file: dtype (the format's names), shape, and byte range from the start of the file."""

    dtype: str
    shape: Tuple[int, ...]
    start: int
    stop: int


class Tensor(NamedTuple):
    """A tensor to write: dtype (the format's names), shape, and its bytes in C order."""

    dtype: str
    shape: Tuple[int, ...]
    data: Any


def _byte_view(data: Any) -> memoryview:
    view = memoryview(data)
    # A view of an empty array cannot be cast in every Python version.
    return memoryview(b"") if view.nbytes == 0 else view.cast("B")


def header_and_layout(tensors: Mapping[str, Tensor]) -> Tuple[bytes, List[Tuple[str, int]], int]:
    """The leading bytes of the file, the (name, padding before it) list in file order, and the whole size in bytes."""
    entries: Dict[str, Any] = {}
    order: List[Tuple[str, int]] = []
    position = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = memoryview(tensor.data).nbytes
        if tensor.dtype not in _SIZES:
            raise ValueError("tensor {!r}: the format has no element type {!r}".format(name, tensor.dtype))
        expected = _SIZES[tensor.dtype]
        for dim in tensor.shape:
            expected *= dim
        if expected != size:
            raise ValueError(
                "tensor {!r}: {} bytes do not fit {} {}".format(name, size, tensor.dtype, list(tensor.shape))
            )
        # The format allows no holes, so padding belongs to named filler tensors of bytes.
        padding = -position % ALIGNMENT
        if padding:
            filler = "__pad{}".format(len(order))
            entries[filler] = {"dtype": "U8", "shape": [padding], "data_offsets": [position, position + padding]}
            position += padding
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        order.append((name, padding))
        position += size
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, order, 8 + len(text) + position


def serialize_chunks(tensors: Mapping[str, Tensor]) -> Iterator[Buffer]:
    """The bytes of a file with these tensors, sorted by name, in pieces that need not be joined in memory."""
    header, order, _ = header_and_layout(tensors)
    yield header
    for name, padding in order:
        if padding:
            yield bytes(padding)
        yield _byte_view(tensors[name].data)


def serialize(tensors: Mapping[str, Tensor]) -> bytes:
    """A file with these tensors; identical input gives identical bytes."""
    return b"".join(serialize_chunks(tensors))


def parse(data: Buffer) -> Dict[str, TensorSpec]:
    """Reads and checks the header of a safetensors file.

    Args:
        data: the whole file (a memory map serves).

    Returns:
        The tensors by name, without the fillers that align them.

    Raises:
        ArtifactError: anything in the header breaks the format, points outside the file, or exceeds a limit (100,000
            tensors, 16 MiB of header).
    """
    view = memoryview(data)
    if view.nbytes < 8:
        raise ArtifactError("The weights are too short to hold a header")
    length = struct.unpack("<Q", view[:8])[0]
    if length > MAX_HEADER_BYTES or length > view.nbytes - 8:
        raise ArtifactError(
            "The weights declare a header of {} bytes, more than there is or than is allowed".format(length)
        )
    header = parse_table(view[8 : 8 + length], "header of the weights", MAX_HEADER_BYTES)
    if len(header) > MAX_TENSORS:
        raise ArtifactError("The weights hold {} tensors; at most {} are allowed".format(len(header), MAX_TENSORS))
    base = 8 + length
    room = view.nbytes - base
    result: Dict[str, TensorSpec] = {}
    spans: List[Tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        spec = _tensor(name, entry, base, room)
        spans.append((spec.start - base, spec.stop - base))
        if not name.startswith("__pad"):
            result[name] = spec
    position = 0
    for start, stop in sorted(spans):
        if start != position:
            raise ArtifactError("The tensors of the weights overlap or leave holes at byte {}".format(base + position))
        position = stop
    if position != room:
        raise ArtifactError("The weights hold {} bytes that belong to no tensor".format(room - position))
    return result


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _tensor(name: str, entry: Any, base: int, room: int) -> TensorSpec:
    where = "tensor {!r} of the weights".format(name[:100])
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ArtifactError("A tensor needs exactly dtype, shape and data_offsets", where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise ArtifactError("The element type {!r} is unknown".format(dtype), where)
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_size(dim) for dim in shape):
        raise ArtifactError("The shape is not a list of sizes", where)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise ArtifactError("The data offsets are not a pair of positions", where)
    size = _SIZES[dtype]
    for dim in shape:
        size *= dim
    start, stop = offsets
    if not start <= stop <= room or stop - start != size:
        raise ArtifactError("The data offsets {} do not fit {} {}".format(offsets, dtype, shape), where)
    return TensorSpec(dtype, tuple(shape), base + start, base + stop)
