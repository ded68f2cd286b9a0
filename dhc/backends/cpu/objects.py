"""Object code of kernels: every kernel is one relocatable object, named by its content, made once and then cached.

An artifact holds a list of these objects rather than one linked file: equal kernels of any two models are the same
bytes, whatever was in the cache when they were compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dhc_runtime.code_object import ALLOWED_SYMBOLS
from dhc_runtime.elf import ElfObject
from dhc_runtime.errors import CompileError

from dhc.backends.cpu.cache import KernelCache, default_cache
from dhc.backends.cpu.target import CpuTarget, _machine
from dhc.backends.loop.half import expand_half
from dhc.backends.loop.ir import Kernel
from dhc.backends.loop.llvm_source import print_kernels
from dhc.ir.dtypes import DType, f16


@dataclass(frozen=True)
class ObjectCode:
    """A kernel in machine code.

    Attributes:
        symbol: name of the function.
        data: ELF relocatable object.
    """

    symbol: str
    data: bytes


def native_half(target: CpuTarget) -> frozenset[DType]:
    """Half types that the processor converts itself."""
    return frozenset({f16}) if "f16c" in target.features or target.arch == "aarch64" else frozenset()


def kernel_ir(kernel: Kernel, target: CpuTarget) -> str:
    """LLVM IR of a kernel for a target, before optimisation."""
    width = f'"prefer-vector-width"="{target.vector_bits}" "min-legal-vector-width"="{target.vector_bits}"'
    # The symbol is that of the kernel as it was lowered, not of the form without half types.
    expanded = expand_half(kernel, native_half(target))
    text = print_kernels([expanded], target.triple, width)
    return text if expanded.symbol == kernel.symbol else text.replace(expanded.symbol, kernel.symbol)


@functools.cache
def _target_machine(target: CpuTarget) -> Any:
    return _machine(target, 2)


def _run_passes(module: Any, machine: Any) -> None:
    import llvmlite.binding as llvm

    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = True
    options.loop_interleaving = True
    options.loop_unrolling = True
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)  # a manager runs once


def parse_ir(ir_text: str, target: CpuTarget) -> Any:
    """A verified LLVM module for a target from text.

    Raises:
        CompileError: LLVM rejects the text.
    """
    import llvmlite.binding as llvm

    machine = _target_machine(target)
    try:
        module = llvm.parse_assembly(ir_text)
        module.triple = target.triple
        module.data_layout = str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise CompileError(
            f"LLVM rejects a kernel: {str(error).strip()[:2000]}",
            hint="This is a defect of dhc; please report it with the model",
        ) from error
    return module


def emit_module(module: Any, target: CpuTarget) -> bytes:
    """Optimises a module with LLVM's pipeline and loop vectoriser and gives its object code; the module is changed.

    Raises:
        CompileError: LLVM cannot emit code, or the code needs something that artifacts may not refer to.
    """
    machine = _target_machine(target)
    try:
        _run_passes(module, machine)
        data = bytes(machine.emit_object(module))
    except RuntimeError as error:
        raise CompileError(f"LLVM cannot emit code for {target.name}: {error}") from error
    foreign = sorted(set(ElfObject(data, "kernel").undefined) - ALLOWED_SYMBOLS)
    if foreign:
        raise CompileError(f"a kernel refers to {', '.join(foreign)}, which artifacts do not have")
    return data


def emit_object(ir_text: str, target: CpuTarget) -> bytes:
    """Optimised object code of an IR module."""
    return emit_module(parse_ir(ir_text, target), target)


def compile_kernel(kernel: Kernel, target: CpuTarget, cache: KernelCache | None = None) -> ObjectCode:
    """Machine code of a kernel, from the cache where it has it.

    Args:
        kernel: the kernel.
        target: the processor.
        cache: where objects are kept; None: the process's default cache.

    Raises:
        CompileError: LLVM rejects the code.
    """
    cache = default_cache() if cache is None else cache
    data = cache.get_or_make(kernel.text, target.text(), lambda: emit_object(kernel_ir(kernel, target), target))
    return ObjectCode(kernel.symbol, data)


def merge(codes: Sequence[ObjectCode]) -> list[ObjectCode]:
    """The distinct objects of an artifact, sorted by symbol, so that equal sets of kernels give equal lists."""
    return [code for _, code in sorted({code.symbol: code for code in codes}.items())]
