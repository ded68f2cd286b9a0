"""The loader of object code: runs what LLVM emits in every code model, and refuses what it does not understand."""

from __future__ import annotations

import ctypes
import math
import mmap
import struct
import subprocess
import sys
from typing import Any

import pytest

from dhc_runtime.code_object import CodeObject
from dhc_runtime.cpu_features import host_arch
from dhc_runtime.elf import ElfObject
from dhc_runtime.errors import ArtifactError

from tests.runtime.artifacts import compile_llvm

SOURCE = """
@table = internal constant [4 x double] [double 1.0, double 2.0, double 3.0, double 4.0]
@counter = internal global i64 7
@zeros = internal global [1000 x i64] zeroinitializer
@shared = common global i64 0, align 8
@functions = internal constant [2 x ptr] [ptr @with_sin, ptr @with_exp]
@outside = global ptr @sin
declare double @sin(double)
declare double @exp(double)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
define double @with_sin(double %x) noinline {
  %y = call double @sin(double %x)
  %z = fadd double %y, 0x400921FB54442D18
  ret double %z
}
define double @with_exp(double %x) noinline {
  %y = tail call double @exp(double %x)
  ret double %y
}
define double @dispatch(i64 %i, double %x) {
  %p = getelementptr [2 x ptr], ptr @functions, i64 0, i64 %i
  %f = load ptr, ptr %p
  %r = call double %f(double %x)
  %q = getelementptr [4 x double], ptr @table, i64 0, i64 %i
  %t = load double, ptr %q
  %s = fadd double %r, %t
  ret double %s
}
define i64 @count() noinline {
  %a = load i64, ptr @counter
  %b = add i64 %a, 1
  store i64 %b, ptr @counter
  %z = getelementptr [1000 x i64], ptr @zeros, i64 0, i64 %b
  %v = load i64, ptr %z
  %w = load i64, ptr @shared
  store i64 0, ptr @shared
  %r0 = add i64 %b, %v
  %r = add i64 %r0, %w
  ret i64 %r
}
define void @vectors(ptr %p) {
  %v = load <8 x float>, ptr %p, align 4
  %m = fmul <8 x float> %v, <float 1.0, float 2.0, float 3.0, float 4.0, float 5.0, float 6.0, float 7.0, float 8.0>
  store <8 x float> %m, ptr %p, align 4
  ret void
}
define void @move(ptr %to, ptr %from, i64 %n) {
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %n, i1 false)
  ret void
}
define i64 @jump(i64 %x) {
  switch i64 %x, label %other [
    i64 0, label %a
    i64 1, label %b
    i64 2, label %c
    i64 3, label %d
    i64 4, label %e
    i64 5, label %f
  ]
a:
  %ra = call i64 @count()
  ret i64 %ra
b:
  ret i64 13
c:
  %rc = call double @with_sin(double 1.0)
  %ic = fptosi double %rc to i64
  ret i64 %ic
d:
  ret i64 71
e:
  ret i64 -5
f:
  %rf = call i64 @count()
  %sf = mul i64 %rf, 3
  ret i64 %sf
other:
  ret i64 0
}
define double @through_pointer(double %x) {
  %p = load ptr, ptr @outside
  %r = call double %p(double %x)
  ret double %r
}
"""

MODELS = [(r, c) for r in ("pic", "static", "dynamicnopic") for c in ("small", "medium", "large", "jitdefault")]


@pytest.mark.parametrize(("reloc", "codemodel"), MODELS)
def test_code_of_every_model_runs(reloc: str, codemodel: str) -> None:
    if host_arch() == "aarch64" and codemodel == "medium":
        pytest.skip("AArch64 has no medium code model")
    code = CodeObject(compile_llvm(SOURCE, reloc=reloc, codemodel=codemodel))

    def function(name: str, result: Any, *arguments: Any) -> Any:
        return ctypes.CFUNCTYPE(result, *arguments)(code.address(name))

    double, i64, pointer = ctypes.c_double, ctypes.c_int64, ctypes.c_void_p
    dispatch = function("dispatch", double, i64, double)
    assert dispatch(0, 0.5) == pytest.approx(math.sin(0.5) + math.pi + 1)
    assert dispatch(1, 0.5) == pytest.approx(math.exp(0.5) + 2)
    count = function("count", i64)
    assert [count(), count()] == [8, 9]
    numbers = (ctypes.c_float * 8)(*[1.0] * 8)
    function("vectors", None, pointer)(ctypes.addressof(numbers))
    assert list(numbers) == [1, 2, 3, 4, 5, 6, 7, 8]
    other = (ctypes.c_float * 8)()
    function("move", None, pointer, pointer, i64)(ctypes.addressof(other), ctypes.addressof(numbers), 32)
    assert list(other) == list(numbers)
    jump = function("jump", i64, i64)
    assert [jump(i) for i in range(7)] == [10, 13, 3, 71, -5, 33, 0]
    assert function("through_pointer", double, double)(0.3) == math.sin(0.3)


@pytest.mark.parametrize(("reloc", "codemodel"), [("pic", "small"), ("static", "small"), ("static", "large")])
@pytest.mark.parametrize("base", [0x10000000, 0x7F1234560000])
def test_aarch64_code_runs_in_an_emulator(reloc: str, codemodel: str, base: int) -> None:
    unicorn = pytest.importorskip("unicorn", reason="the unicorn emulator is not installed")
    from unicorn import arm64_const as arm

    source = SOURCE.replace("call double @with_sin(double 1.0)", "call double @dispatch(i64 1, double 1.0)")
    elf = ElfObject(compile_llvm(source, triple="aarch64-unknown-linux-gnu", reloc=reloc, codemodel=codemodel))
    assert elf.arch == "aarch64"
    outside = 0x600000000000  # too far for a direct call: the veneers are needed
    functions = {name: outside + 16 * i for i, name in enumerate(elf.undefined)}
    image = bytearray(elf.image_size)
    elf.link(memoryview(image), base, functions.__getitem__)
    machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    machine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)
    for segment in elf.segments:
        protection = {"rx": unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC, "r": unicorn.UC_PROT_READ, "rw": 3}
        machine.mem_map(base + segment.start, segment.size, protection[segment.protection])
    machine.mem_write(base, bytes(image))
    stack, end = 0x20000000, 0x30000000
    machine.mem_map(stack, 0x10000)
    machine.mem_map(end, 0x1000)
    machine.mem_map(outside, 0x10000)
    machine.mem_write(outside, struct.pack("<I", 0xD65F03C0) * 0x100)  # every outside function is `ret`

    def as_double(bits: int) -> float:
        return struct.unpack("<d", struct.pack("<Q", bits & (1 << 64) - 1))[0]

    def hook(emulator: Any, address: int, size: int, data: Any) -> None:
        for name, place in functions.items():
            if address == place and name in ("sin", "exp"):
                value = getattr(math, name)(as_double(emulator.reg_read(arm.UC_ARM64_REG_D0)))
                emulator.reg_write(arm.UC_ARM64_REG_D0, struct.unpack("<Q", struct.pack("<d", value))[0])

    machine.hook_add(unicorn.UC_HOOK_CODE, hook, begin=outside, end=outside + 0x1000)

    def call(name: str, *integers: int, x: float = 0.0) -> tuple[int, float]:
        for register, value in zip((arm.UC_ARM64_REG_X0, arm.UC_ARM64_REG_X1, arm.UC_ARM64_REG_X2), integers):
            machine.reg_write(register, value)
        machine.reg_write(arm.UC_ARM64_REG_D0, struct.unpack("<Q", struct.pack("<d", x))[0])
        machine.reg_write(arm.UC_ARM64_REG_SP, stack + 0x8000)
        machine.reg_write(arm.UC_ARM64_REG_LR, end)
        machine.emu_start(base + elf.symbols()[name], end)
        result = machine.reg_read(arm.UC_ARM64_REG_X0)
        return result - (1 << 64 if result >> 63 else 0), as_double(machine.reg_read(arm.UC_ARM64_REG_D0))

    assert call("dispatch", 0, x=0.5)[1] == pytest.approx(math.sin(0.5) + math.pi + 1)
    assert call("dispatch", 1, x=0.5)[1] == pytest.approx(math.exp(0.5) + 2)
    assert [call("count")[0], call("count")[0]] == [8, 9]
    machine.mem_write(stack, struct.pack("<8f", *[1.0] * 8))
    call("vectors", stack)
    assert struct.unpack("<8f", machine.mem_read(stack, 32)) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert [call("jump", i)[0] for i in range(7)] == [10, 13, 4, 71, -5, 33, 0]
    assert call("through_pointer", x=0.3)[1] == math.sin(0.3)


def test_memory_is_never_writable_and_executable() -> None:
    if sys.platform != "linux":
        pytest.skip("memory maps are read from /proc")
    data = compile_llvm(SOURCE)
    code, end = CodeObject(data), ElfObject(data, page=mmap.PAGESIZE).image_size
    with open("/proc/self/maps") as stream:
        fields = [line.split() for line in stream]
    maps = [(*[int(address, 16) for address in field[0].split("-")], field[1]) for field in fields]
    mine = [(start, stop, mode) for start, stop, mode in maps if start < code.base + end and stop > code.base]
    assert {mode for _, _, mode in mine} == {"r-xp", "r--p", "rw-p"}
    assert [mode for start, stop, mode in mine if start <= code.address("count") < stop] == ["r-xp"]


@pytest.mark.parametrize("alignment", [16, 4096, 8192, 65536])
@pytest.mark.parametrize(
    "kind", ['constant [3 x i8] c"abc"', 'global [3 x i8] c"abc"', "common global [3 x i8] zeroinitializer"]
)
def test_alignment_of_data(kind: str, alignment: int) -> None:
    source = f"@d = {kind}, align {alignment}\ndefine ptr @f() {{\n ret ptr @d\n}}"
    for code in [CodeObject(compile_llvm(source)) for _ in range(3)]:
        address = ctypes.CFUNCTYPE(ctypes.c_uint64)(code.address("f"))()
        assert address % alignment == 0
        assert ctypes.string_at(address, 3) == (bytes(3) if kind.startswith("common") else b"abc")


def test_only_allowed_symbols() -> None:
    source = "declare i32 @system(ptr)\ndefine i32 @f(ptr %p) {\n %r = call i32 @system(ptr %p)\n ret i32 %r\n}"
    with pytest.raises(ArtifactError, match=r"'system'.*not among the functions"):
        CodeObject(compile_llvm(source))


def test_a_missing_function_is_named() -> None:
    with pytest.raises(ArtifactError, match="no function 'nothing'"):
        CodeObject(compile_llvm(SOURCE)).address("nothing")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@t = thread_local global i64 1\ndefine ptr @f() {\n ret ptr @t\n}", "thread-local"),
        (
            "@llvm.global_ctors = appending global [1 x { i32, ptr, ptr }] "
            "[{ i32, ptr, ptr } { i32 1, ptr @f, ptr null }]\n"
            "define void @f() {\n ret void\n}",
            "code to run at load",
        ),
        ("@big = global [600000000 x i8] zeroinitializer", "128 MiB"),
        ("@f = ifunc void (), ptr @g\ndefine ptr @g() {\n ret ptr null\n}", "resolved at load"),
    ],
)
def test_what_is_not_supported_is_refused(source: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        ElfObject(compile_llvm(source))


def test_code_of_another_machine_is_refused() -> None:
    other = "aarch64" if host_arch() == "x86_64" else "x86_64"
    with pytest.raises(ArtifactError, match=f"for {other} and this machine is {host_arch()}"):
        CodeObject(compile_llvm(SOURCE, triple=f"{other}-unknown-linux-gnu"))


def test_not_an_object() -> None:
    good = compile_llvm(SOURCE)
    for data in (b"", b"\x7fELF", bytes(64), good[:40], good[:200], b"MZ" + good[2:]):
        with pytest.raises(ArtifactError):
            ElfObject(data)
    for offset, value in ((4, 1), (5, 2), (16, 3), (18, 40), (58, 63)):
        damaged = bytearray(good)
        damaged[offset] = value
        with pytest.raises(ArtifactError):
            ElfObject(damaged)


def test_unknown_relocation_is_named() -> None:
    data = bytearray(compile_llvm("@g = external global i64\n@p = global ptr @g"))
    elf = ElfObject(data)
    (entries,) = elf._relocations.values()
    offset, kind, index, addend = entries[0]
    old = struct.pack("<QQq", offset, index << 32 | kind, addend)
    place = bytes(data).index(old)
    data[place : place + 24] = struct.pack("<QQq", offset, index << 32 | 999, addend)
    with pytest.raises(ArtifactError, match="Relocation type 999"):
        ElfObject(data)


FUZZ = """
import random, sys
from dhc_runtime.elf import ElfObject
from dhc_runtime.errors import ArtifactError
good = open(sys.argv[1], "rb").read()
rng = random.Random(3)
outcomes = {"refused": 0, "linked": 0}
for _ in range(600):
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 4))):
        # Where the structures are: the header, the symbols and relocations, the section table.
        place = rng.choice((rng.randrange(64), rng.randrange(len(data)), len(data) - 1 - rng.randrange(1200)))
        data[place] = rng.choice((0, 255, rng.randrange(256), data[place] ^ (1 << rng.randrange(8))))
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)):]
    try:
        elf = ElfObject(data)
        elf.symbols()
        if elf.image_size < 1 << 24:
            elf.link(memoryview(bytearray(elf.image_size)), 0x10000, lambda name: 0x20000)
        outcomes["linked"] += 1
    except ArtifactError:
        outcomes["refused"] += 1
print(outcomes["refused"] > 50, outcomes["linked"] > 50)
"""


def test_damaged_objects_give_an_error_or_link_but_never_anything_else(tmp_path: Any) -> None:
    for name, triple in (("x86", "x86_64-unknown-linux-gnu"), ("arm", "aarch64-unknown-linux-gnu")):
        path = tmp_path / name
        path.write_bytes(compile_llvm(SOURCE, triple=triple))
        done = subprocess.run([sys.executable, "-c", FUZZ, str(path)], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout == "True True\n"


def test_the_image_goes_when_nobody_needs_it() -> None:
    data = compile_llvm(SOURCE)
    kept = [CodeObject(data) for _ in range(3)]
    addresses = [code.address("count") for code in kept]
    del kept[1]
    assert len(set(addresses)) == 3
    for code in kept:
        assert ctypes.CFUNCTYPE(ctypes.c_int64)(code.address("count"))() == 8
