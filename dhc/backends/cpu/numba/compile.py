"""Compiles Python functions with Numba's front end to LLVM IR for any target.

Numba types the function and writes IR; dhc optimises that IR for the requested target and gives it the C ABI of CPU
kernels, so that object code never depends on the compiling machine and needs nothing of Numba at run time. To that
end a code generator of our own stands in for Numba's: it optimises nothing and loads nothing.

Measured on one core of a Zen 4 server with LLVM 22, milliseconds of processor time for one kernel, from its loops to
its object code:

    kernel                        direct LLVM IR   Numba source
    x + y, relu                             15             50
    gelu (erf as a polynomial)              25            183
    bias + relu, NCHW                       19             84
    sum of squares over H, W                16             56
    softmax of rows                         76            241

The first function that Numba compiles in a process takes half a second more, which the direct way never pays. So loop
kernels are printed as LLVM IR (`loop/llvm_source.py`) when they are compiled for CPUs; their Numba source is what
people read (`--emit kernels`), what CUDA compiles, and what tests compare with. Opaque functions are Python and come
through here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from dhc_runtime.errors import CompileError

from dhc.backends.cpu.cache import KernelCache, default_cache
from dhc.backends.cpu.numba.builtins import whole
from dhc.backends.cpu.numba.opaque import ArrayArgument, OpaqueKernel, fingerprint
from dhc.backends.cpu.numba.prelude import prelude
from dhc.backends.cpu.numba.shim import opaque_shim
from dhc.backends.cpu.objects import ObjectCode, emit_module, native_half, parse_ir
from dhc.backends.cpu.target import CpuTarget
from dhc.backends.loop.complex import part_dtype
from dhc.backends.loop.functions import register
from dhc.backends.loop.half import expand_half
from dhc.backends.loop.ir import Buffer, Kernel
from dhc.backends.loop.numba_source import function_name, print_numba
from dhc.ir.dtypes import DType, f32


@functools.cache
def _contexts() -> tuple[Any, Any]:
    """Typing and target context: those of Numba's CPU target, with a code generator that only collects IR."""
    from numba.core import codegen
    from numba.core.registry import cpu_target

    class Library(codegen.AOTCodeLibrary):  # type: ignore[misc]
        def _optimize_functions(self, ll_module: Any) -> None:
            ll_module.data_layout = self._codegen._data_layout

        def _optimize_final_module(self) -> None:
            """Dhc optimises for its own target later."""

    class Codegen(codegen.AOTCPUCodegen):  # type: ignore[misc]
        _library_class = Library

    typing_context, target_context = cpu_target.typing_context, cpu_target.target_context
    typing_context.refresh()
    target_context.refresh()
    # Functions that Numba compiled before, for the host, must not come in through its cache.
    own = target_context.subtarget(_internal_codegen=Codegen("dhc"), aot_mode=True, cached_internal_func={})
    return typing_context, own


def numba_ir(function: Callable[..., Any], signature: Sequence[Any]) -> tuple[str, str]:
    """Unoptimised LLVM IR of a Python function for Numba types, and the name of the function in it.

    Raises:
        CompileError: Numba cannot type or translate the function.
    """
    from numba.core import compiler, errors, types
    from numba.core.compiler_lock import global_compiler_lock

    flags = compiler.Flags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.enable_pyobject = False
    flags.nrt = False
    typing_context, target_context = _contexts()
    try:
        with global_compiler_lock:
            compiled = compiler.compile_extra(
                typing_context, target_context, whole(function), tuple(signature), types.int64, flags, {}
            )
    except (errors.NumbaError, NotImplementedError) as error:
        raise CompileError(
            f"Numba cannot compile {function.__module__}.{function.__qualname__}: {error}",
            hint="Functions of ops use loops, arithmetic, math and indexing only",
        ) from error
    with global_compiler_lock:
        compiled.library._ensure_finalized()  # links the functions in that Numba compiled on the way (complex products)
    return str(compiled.library._final_module), compiled.fndesc.llvm_func_name


def _cached_ir(function: Callable[..., Any], signature: Sequence[Any], cache: KernelCache) -> tuple[str, str]:
    """As `numba_ir`; one entry serves all sizes, numbers and targets with which a function is used on these types."""

    def make() -> bytes:
        text, name = numba_ir(function, signature)
        return f"{name}\n{text}".encode()

    types = ", ".join(str(t) for t in signature)
    stored = cache.get_or_make(f"numba ir of {fingerprint(function)}\n({types})", "", make).decode()
    name, _, text = stored.partition("\n")
    return text, name


def _number_type(number: int | float | str) -> Any:
    from numba.core import types

    return types.float64 if isinstance(number, float) else types.int64


def _array_type(array: ArrayArgument) -> Any:
    from numba.core import types
    from numba.np.numpy_support import from_dtype

    element: DType = f32 if array.wide is not None else register(array.dtype)
    return types.Array(from_dtype(element.numpy), len(array.shape), "C")


def opaque_ir(kernel: OpaqueKernel, target: CpuTarget, cache: KernelCache | None = None) -> Any:
    """The linked LLVM module of an opaque kernel, before optimisation; with a cache, Numba's part is taken from it."""
    from numba.core import types

    signature = [_array_type(a) for a in kernel.arrays]
    numbers = [_number_type(n) for n in kernel.numbers]
    if kernel.items is not None:
        numbers += [types.int64, types.int64]
    code = kernel.function.__code__
    positional = code.co_argcount - len(signature)
    if code.co_flags & 0x04:  # *numbers: one tuple argument, passed as its elements
        rest = numbers[positional:]
        if any(t is not types.int64 for t in rest):
            raise CompileError(f"the trailing numbers of {kernel.name} are not all integers")
        numbers = [*numbers[:positional], types.UniTuple(types.int64, len(rest))]
    full = [*signature, *numbers]
    text, name = numba_ir(kernel.function, full) if cache is None else _cached_ir(kernel.function, full, cache)
    module = parse_ir(text, target)
    own = parse_ir(opaque_shim(kernel, name, target, native_half(target)), target)
    module.link_in(own)
    _hide(module, kernel.symbol)
    return module


def _hide(module: Any, symbol: str) -> None:
    """Makes everything but the kernel internal, under names that do not depend on the process."""
    from llvmlite.binding import Linkage

    for number, item in enumerate([*module.functions, *module.global_variables]):
        if item.name.startswith("llvm.") or item.name == symbol or item.is_declaration:
            continue
        item.linkage = Linkage.internal
        item.name = f"part{number}"


def compile_opaque(kernel: OpaqueKernel, target: CpuTarget, cache: KernelCache | None = None) -> ObjectCode:
    """Machine code of an opaque kernel, from the cache where it has it.

    Raises:
        CompileError: Numba or LLVM rejects the function.
    """
    cache = default_cache() if cache is None else cache
    data = cache.get_or_make(kernel.text, target.text(), lambda: emit_module(opaque_ir(kernel, target, cache), target))
    return ObjectCode(kernel.symbol, data)


def compile_source(kernel: Kernel, target: CpuTarget) -> ObjectCode:
    """Machine code of a loop kernel by way of its Numba source: the same function as `objects.compile_kernel` makes.

    Used to test the source that CUDA compiles and people read; not cached.
    """
    expanded = expand_half(kernel)
    scope = dict(prelude())
    # Source that this program has just printed from a kernel: no text from outside gets here.
    exec(compile(print_numba(expanded), f"<kernel {kernel.symbol}>", "exec"), scope)  # noqa: S102
    arrays = tuple(_loop_array(b) for b in expanded.buffers)
    whole = OpaqueKernel(
        kernel.name, scope[function_name(kernel)], arrays, (*kernel.params, "tid", "nthreads"), kernel.params, None,
        splits=True,
    )  # fmt: skip
    return ObjectCode(whole.symbol, emit_module(opaque_ir(whole, target), target))


def _loop_array(buffer: Buffer) -> ArrayArgument:
    dtype = part_dtype(buffer.dtype) if buffer.dtype.kind == "c" else buffer.dtype
    return ArrayArgument(dtype, (0,))  # Numba checks no bounds: the length does not matter
