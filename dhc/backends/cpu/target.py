"""CPU target descriptions and object code emission.

A :class:`CpuTarget` says what the code generators need to know (vector width, register count, FMA, caches) and what
LLVM needs to know (triple, CPU, features). Generated code depends on the target alone, never on the machine that
compiles, so that an artifact for ``x86-64-v3`` has the same bytes wherever it is built.

Targets without a fused multiply-add (``x86-64`` and ``x86-64-v2``) round after the product as well: their results
differ from those of the other targets in the last bits. Within one target results are bit-equal.
"""

from __future__ import annotations

import difflib
import functools
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dhc_runtime.errors import CompileError, UsageError

# The x86-64 micro-architecture levels of the System V ABI, as (LLVM feature, /proc/cpuinfo flag). Cumulative.
_LEVEL_1 = (("sse2", "sse2"), ("fxsr", "fxsr"), ("cmov", "cmov"), ("cx8", "cx8"), ("mmx", "mmx"), ("sse", "sse"))
_LEVEL_2 = (
    ("cx16", "cx16"),
    ("popcnt", "popcnt"),
    ("sahf", "lahf_lm"),
    ("sse3", "pni"),
    ("ssse3", "ssse3"),
    ("sse4.1", "sse4_1"),
    ("sse4.2", "sse4_2"),
)
_LEVEL_3 = (
    ("avx", "avx"),
    ("avx2", "avx2"),
    ("bmi", "bmi1"),
    ("bmi2", "bmi2"),
    ("f16c", "f16c"),
    ("fma", "fma"),
    ("lzcnt", "abm"),
    ("movbe", "movbe"),
)
_LEVEL_4 = (
    ("avx512f", "avx512f"),
    ("avx512bw", "avx512bw"),
    ("avx512cd", "avx512cd"),
    ("avx512dq", "avx512dq"),
    ("avx512vl", "avx512vl"),
)
# Further instructions that a host target uses where the machine has them.
_X86_EXTRAS = (
    ("aes", "aes"),
    ("adx", "adx"),
    ("avx512bf16", "avx512_bf16"),
    ("avx512bitalg", "avx512_bitalg"),
    ("avx512ifma", "avx512ifma"),
    ("avx512vbmi", "avx512vbmi"),
    ("avx512vbmi2", "avx512_vbmi2"),
    ("avx512vnni", "avx512_vnni"),
    ("avx512vpopcntdq", "avx512_vpopcntdq"),
    ("avx512fp16", "avx512_fp16"),
    ("avxvnni", "avx_vnni"),
    ("gfni", "gfni"),
    ("pclmul", "pclmulqdq"),
    ("vaes", "vaes"),
    ("vpclmulqdq", "vpclmulqdq"),
)
_ARM = (("neon", "asimd"), ("fp-armv8", "fp"))
_CPUINFO_NAME = dict(_LEVEL_1 + _LEVEL_2 + _LEVEL_3 + _LEVEL_4 + _X86_EXTRAS + _ARM)

_X86_TRIPLE = "x86_64-unknown-linux-gnu"
_ARM_TRIPLE = "aarch64-unknown-linux-gnu"


@dataclass(frozen=True)
class CpuTarget:
    """A CPU as the code generators and LLVM see it.

    Attributes:
        name: name for messages and the command line.
        triple: LLVM target triple; always ELF, also where the host's own format is another.
        cpu: LLVM CPU name (scheduling model and implied features).
        features: LLVM feature names that the code may use, sorted.
        vector_bits: width of the vectors the generators use.
        vector_registers: number of vector registers.
        fma: whether a fused multiply-add instruction exists; without it products are rounded before the sum.
        masks: whether masked loads and stores are cheap (AVX-512).
        l1_bytes: first-level data cache of one core.
        l2_bytes: second-level cache of one core.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    fma: bool
    masks: bool = False
    l1_bytes: int = 32 * 1024
    l2_bytes: int = 512 * 1024

    @property
    def arch(self) -> str:
        """``x86_64`` or ``aarch64``."""
        return self.triple.split("-")[0]

    @property
    def feature_string(self) -> str:
        """The features in LLVM's form, ``+avx2,+fma``."""
        return ",".join("+" + feature for feature in self.features)

    def lanes(self, dtype: str) -> int:
        """Number of elements of ``dtype`` (``f32``, ``f64``, ``i8``, ...) in one vector."""
        return self.vector_bits // int(re.sub(r"\D", "", dtype))

    def text(self) -> str:
        """Canonical text: equal for equal targets, part of every kernel's content hash."""
        return (
            f"{self.triple} {self.cpu} {self.feature_string} v{self.vector_bits}x{self.vector_registers} "
            f"fma={int(self.fma)} masks={int(self.masks)} l1={self.l1_bytes} l2={self.l2_bytes}"
        )


def _features(*levels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(sorted(llvm for level in levels for llvm, _ in level))


_PRESETS = {
    preset.name: preset
    for preset in (
        CpuTarget("x86-64", _X86_TRIPLE, "x86-64", _features(_LEVEL_1), 128, 16, False),
        CpuTarget("x86-64-v2", _X86_TRIPLE, "x86-64-v2", _features(_LEVEL_1, _LEVEL_2), 128, 16, False),
        CpuTarget("x86-64-v3", _X86_TRIPLE, "x86-64-v3", _features(_LEVEL_1, _LEVEL_2, _LEVEL_3), 256, 16, True),
        CpuTarget(
            "x86-64-v4",
            _X86_TRIPLE,
            "x86-64-v4",
            _features(_LEVEL_1, _LEVEL_2, _LEVEL_3, _LEVEL_4),
            512,
            32,
            True,
            masks=True,
            l2_bytes=1024 * 1024,
        ),
        CpuTarget("aarch64", _ARM_TRIPLE, "generic", _features(_ARM), 128, 32, True),
    )
}


def target_names() -> tuple[str, ...]:
    """The names that :func:`target` understands."""
    return ("host", *_PRESETS)


def target(name: str | None = None) -> CpuTarget:
    """Finds a target by name: ``host`` or one of the presets.

    Args:
        name: the name; None for that in the environment variable ``DHC_CPU``, or else ``host``.

    Raises:
        UsageError: for an unknown name; the hint gives the nearest known one.
    """
    if name is None:
        name = os.environ.get("DHC_CPU") or "host"
    if name == "host":
        return host_target()
    found = _PRESETS.get(name)
    if found is not None:
        return found
    near = difflib.get_close_matches(name, target_names(), n=1, cutoff=0.4)
    known = ", ".join(target_names())
    raise UsageError(
        f"unknown CPU target '{name}'",
        hint=f"Did you mean '{near[0]}'? Known targets: {known}" if near else f"Known targets: {known}",
    )


@functools.cache
def host_target() -> CpuTarget:
    """Describes the machine this process runs on: its instructions, its widest vectors, its caches.

    Raises:
        CompileError: when the processor is neither x86-64 nor AArch64.
    """
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return CpuTarget(
            "host",
            _ARM_TRIPLE,
            "generic",
            _features(_ARM),
            128,
            32,
            True,
            l1_bytes=_cache_bytes(1, 32),
            l2_bytes=_cache_bytes(2, 512),
        )
    if machine not in ("x86_64", "amd64"):
        raise CompileError(
            f"the CPU backend has no code generator for '{machine}' processors",
            hint="Name a target, for example aarch64, and run the artifact there",
        )
    import llvmlite.binding as llvm

    present = llvm.get_host_cpu_features()
    known = _LEVEL_1 + _LEVEL_2 + _LEVEL_3 + _LEVEL_4 + _X86_EXTRAS
    features = tuple(sorted(feature for feature, _ in known if present.get(feature, False)))
    level = "x86-64"
    for candidate in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        if set(_PRESETS[candidate].features) <= set(features):
            level = candidate
    preset = _PRESETS[level]
    # The level is named as the CPU, not the model: a model name would let LLVM use instructions that this list, which
    # the artifact carries and the runtime checks, does not hold.
    return CpuTarget(
        "host",
        _X86_TRIPLE,
        level,
        features,
        preset.vector_bits,
        preset.vector_registers,
        preset.fma,
        preset.masks,
        _cache_bytes(1, 32),
        _cache_bytes(2, preset.l2_bytes // 1024),
    )


def _cache_bytes(level: int, default_kib: int) -> int:
    """Size of the data cache of a level of core 0 as Linux reports it, within sane limits, else the default."""
    for index in range(4):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        try:
            if (folder / "level").read_text().strip() != str(level) or (
                folder / "type"
            ).read_text().strip() == "Instruction":
                continue
            size = (folder / "size").read_text().strip()
        except OSError:
            continue
        if re.fullmatch(r"\d+K", size):
            return min(max(int(size[:-1]), 16), 4096) * 1024
    return default_kib * 1024


def required_features(described: CpuTarget) -> list[str]:
    """The flags, in the spelling of ``/proc/cpuinfo``, that a machine must have to run the target's code."""
    return sorted(_CPUINFO_NAME[feature] for feature in described.features)


# Stack slots to registers, then tidying up: on generated kernels as fast at run time as LLVM's standard pipeline, and a
# quarter of its time.
_PASSES = (
    "sroa",
    "instruction_combine",
    "simplify_cfg",
    "new_gvn",
    "loop_simplify",
    "loop_rotate",
    "instruction_combine",
    "simplify_cfg",
)


@functools.cache
def _initialize() -> None:
    import llvmlite.binding as llvm

    for prefix in ("initialize_all_targets", "initialize_all_asmprinters"):
        getattr(llvm, prefix)()


def _machine(described: CpuTarget, opt: int) -> Any:
    import llvmlite.binding as llvm

    _initialize()
    return llvm.Target.from_triple(described.triple).create_target_machine(
        cpu=described.cpu, features=described.feature_string, opt=opt, reloc="pic", codemodel="small"
    )


def optimized_module(ir_text: str | Sequence[str], described: CpuTarget, opt: int = 2, machine: Any = None) -> Any:
    """Parses, verifies, links and optimises LLVM IR; returns an llvmlite ``ModuleRef``.

    Args:
        ir_text: IR of one module or of several to link into one (their global names must differ).
        described: the target.
        opt: code generation level, 0 to 3; 3 runs LLVM's whole standard pipeline as well.
        machine: the target machine, when the caller has one.

    Raises:
        CompileError: when LLVM rejects the IR.
    """
    import llvmlite.binding as llvm

    machine = machine or _machine(described, opt)
    texts = [ir_text] if isinstance(ir_text, str) else list(ir_text)
    try:
        module = llvm.parse_assembly(texts[0])
        module.verify()
        for text in texts[1:]:
            other = llvm.parse_assembly(text)
            other.verify()
            module.link_in(other)
        module.triple = described.triple
        module.data_layout = str(machine.target_data)
        options = llvm.create_pipeline_tuning_options(speed_level=opt)
        # The generators write vector code themselves; LLVM's vectorisers and unroller only disturb register tiles.
        options.loop_vectorization = options.slp_vectorization = False
        options.loop_unrolling = options.loop_interleaving = False
        builder = llvm.create_pass_builder(machine, options)
        if opt >= 3:
            builder.getModulePassManager().run(module, builder)
        else:
            passes = llvm.create_new_function_pass_manager()
            for name in _PASSES:
                getattr(passes, f"add_{name}_pass")()
            for function in module.functions:
                if not function.is_declaration:
                    passes.run(function, builder)
        module.verify()
    except RuntimeError as error:
        raise CompileError(
            f"LLVM rejects generated code: {str(error).strip()[:2000]}",
            hint="This is a defect of dhc; please report it with the model",
        ) from error
    return module


def compile_ir(ir_text: str | Sequence[str], described: CpuTarget, opt: int = 2) -> bytes:
    """Compiles LLVM IR to an ELF relocatable object (position independent, small code model).

    Args:
        ir_text: IR of one module or of several to link into one object.
        described: the target.
        opt: code generation level, 0 to 3; 3 runs LLVM's whole standard pipeline as well.

    Returns:
        The object file; equal bytes for equal input.

    Raises:
        CompileError: when LLVM rejects the IR.
    """
    machine = _machine(described, opt)
    module = optimized_module(ir_text, described, opt, machine)
    try:
        return bytes(machine.emit_object(module))
    except RuntimeError as error:
        raise CompileError(f"LLVM cannot emit code for {described.name}: {error}") from error


def assembly(ir_text: str | Sequence[str], described: CpuTarget, opt: int = 2) -> str:
    """The assembler text of what :func:`compile_ir` emits, for reading."""
    machine = _machine(described, opt)
    return str(machine.emit_assembly(optimized_module(ir_text, described, opt, machine)))
