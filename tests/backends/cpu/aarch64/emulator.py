"""Runs the AArch64 code of an artifact under qemu's user emulation, without any AArch64 system.

The objects, a list of steps, tables, weights and inputs are laid out as one static executable with our own linker; a
few instructions at its start call ``dhc_team``, write the results to standard output and leave with the status.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from dhc_runtime import safetensors
from dhc_runtime.code_archive import read_archive
from dhc_runtime.dims import bind_shapes, evaluate, evaluate_shape
from dhc_runtime.dtypes import numpy_dtype
from dhc_runtime.elf import ElfObject

from dhc.backends.cpu.target import compile_ir, target

BASE = 0x1000_0000
PAGE = 65536
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
# What kernels call of C's library, as plain loops.
LIBRARY = """
define ptr @memset(ptr %to, i32 %value, i64 %count) {
entry:
  %byte = trunc i32 %value to i8
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %done
body:
  %at = getelementptr i8, ptr %to, i64 %i
  store volatile i8 %byte, ptr %at
  %next = add i64 %i, 1
  br label %test
done:
  ret ptr %to
}
define ptr @memcpy(ptr %to, ptr %from, i64 %count) {
entry:
  br label %test
test:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %done
body:
  %a = getelementptr i8, ptr %from, i64 %i
  %b = getelementptr i8, ptr %to, i64 %i
  %byte = load volatile i8, ptr %a
  store volatile i8 %byte, ptr %b
  %next = add i64 %i, 1
  br label %test
done:
  ret ptr %to
}
define i32 @nanosleep(ptr %time, ptr %left) {
  ret i32 0
}
define i32 @clock_gettime(i32 %which, ptr %time) {
  ret i32 0
}
define i32 @sem_init(ptr %semaphore, i32 %shared, i32 %value) {
  ret i32 0
}
define i32 @sem_post(ptr %semaphore) {
  ret i32 0
}
define i32 @sem_wait(ptr %semaphore) {
  ret i32 0
}
"""


class _Image:
    """Bytes at an address, filled from the front."""

    def __init__(self) -> None:
        self.data = bytearray(PAGE)  # the ELF header, and the start

    def reserve(self, size: int, alignment: int = 64) -> int:
        """The address of so many zero bytes."""
        self.data.extend(bytes(-len(self.data) % alignment + size))
        return BASE + len(self.data) - size

    def put(self, address: int, content: bytes) -> None:
        """Writes bytes at an address."""
        self.data[address - BASE : address - BASE + len(content)] = content

    def place(self, content: bytes) -> int:
        """The address of a copy of these bytes."""
        address = self.reserve(len(content))
        self.put(address, content)
        return address


def run_emulated(artifact: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of an artifact for AArch64 whose program is one list of kernels with known sizes."""
    program = json.loads(bytes(artifact._members["plan.json"]))["program"]
    symbols = {"threads__": 1}
    shapes = [port["shape"] for port in program["inputs"]]
    assert not bind_shapes(list(inputs), shapes, [value.shape for value in inputs.values()], symbols)
    image = _Image()
    functions = _link(image, read_archive(artifact._members["cpu/code.a"], "code"))
    addresses, sizes = _buffers(image, artifact, program, inputs, symbols)
    steps = bytearray()
    for item in program["items"]:
        assert item["do"] == "kernel", item["do"]
        table = image.place(b"".join(struct.pack("<Q", addresses[b]) for b in item["buffers"]))
        params = image.place(b"".join(struct.pack("<q", evaluate(p, symbols)) for p in item["params"]))
        steps += struct.pack("<QQQQ", functions[item["symbol"]], table, params, int(item["barrier"]))
    arguments = (image.place(bytes(steps)), len(program["items"]), 0, 1, image.reserve(256))
    answers = [port["buffer"] for port in program["outputs"]]
    image.put(BASE + 176, _start(functions["dhc_team"], arguments, [(addresses[b], sizes[b]) for b in answers]))
    written = _execute(image)
    results = []
    for port in program["outputs"]:
        data, written = written[: sizes[port["buffer"]]], written[sizes[port["buffer"]] :]
        results.append(np.frombuffer(data, numpy_dtype(port["dtype"])).reshape(evaluate_shape(port["shape"], symbols)))
    assert not written
    return results


def _link(image: _Image, objects: dict[str, Any]) -> dict[str, int]:
    described = target("aarch64")
    library = ElfObject(compile_ir(LIBRARY, described), "library", PAGE)
    functions: dict[str, int] = {}
    for name, elf in [("library", library), *((n, ElfObject(d, n, PAGE)) for n, d in objects.items())]:
        base = image.reserve(elf.image_size, PAGE)
        linked = bytearray(elf.image_size)
        if name != "library":
            functions["memmove"] = functions["memcpy"]  # only ever to lower addresses, which the loop is right for
        elf.link(memoryview(linked), base, functions.__getitem__)
        image.put(base, bytes(linked))
        functions.update({symbol: base + offset for symbol, offset in elf.symbols().items()})
    return functions


def _buffers(
    image: _Image, artifact: Any, program: dict[str, Any], inputs: dict[str, np.ndarray], symbols: dict[str, int]
) -> tuple[list[int], list[int]]:
    weights = b"".join(bytes(part) for part in artifact._members["weights.safetensors"])
    tensors = safetensors.parse(weights)
    names = {port["buffer"]: port["name"] for port in program["inputs"]}
    sizes = [evaluate(buffer["bytes"], symbols) for buffer in program["buffers"]]
    addresses = [0] * len(sizes)
    for number, buffer in enumerate(program["buffers"]):
        if buffer["kind"] == "const":
            spec = tensors[buffer["constant"]]
            addresses[number] = image.place(weights[spec.start : spec.stop])
        elif buffer["kind"] == "input":
            addresses[number] = image.place(np.ascontiguousarray(inputs[names[number]]).tobytes())
        elif buffer["kind"] != "alias":
            addresses[number] = image.reserve(sizes[number])
    for number in range(len(sizes)):
        offset, owner = 0, number
        while program["buffers"][owner]["kind"] == "alias":
            offset += evaluate(program["buffers"][owner]["offset"], symbols)
            owner = program["buffers"][owner]["of"]
        addresses[number] = addresses[owner] + offset
    return addresses, sizes


def _load(register: int, value: int) -> bytes:
    words = [0xD2800000 | (value & 0xFFFF) << 5 | register]
    words += [0xF2800000 | part << 21 | (value >> 16 * part & 0xFFFF) << 5 | register for part in (1, 2, 3)]
    return struct.pack("<4I", *words)


def _start(run: int, arguments: tuple[int, ...], answers: list[tuple[int, int]]) -> bytes:
    code = b"".join(_load(register, value) for register, value in enumerate(arguments))
    code += _load(16, run) + struct.pack("<I", 0xD63F0000 | 16 << 5)  # blr x16
    code += struct.pack("<I", 0xAA0003F3)  # mov x19, x0
    for address, size in answers:
        code += _load(0, 1) + _load(1, address) + _load(2, size) + _load(8, 64) + struct.pack("<I", 0xD4000001)
    return code + struct.pack("<I", 0xAA1303E0) + _load(8, 93) + struct.pack("<I", 0xD4000001)  # exit(x19)


def _execute(image: _Image) -> bytes:
    import tempfile

    size = len(image.data)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, BASE + 176, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, PAGE)
    header += struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # a stack that is not executable
    image.put(BASE, header)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program")
        path.write_bytes(image.data)
        path.chmod(0o755)
        assert EMULATOR is not None
        done = subprocess.run([EMULATOR, str(path)], capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}"
    return done.stdout
