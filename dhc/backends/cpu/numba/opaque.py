"""Opaque ops as kernels: which arrays and numbers the function of an op gets, and from which parameters."""

from __future__ import annotations

import dis
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any

from dhc_runtime.errors import CompileError, DhcError

from dhc.backends.loop.functions import HALF
from dhc.backends.loop.generalize import SizeSymbols
from dhc.ir import symbols
from dhc.ir.dtypes import DType, f32, i64
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.graph import Node
from dhc.ir.kinds import Opaque
from dhc.ir.symbols import Dim, SymExpr

Size = int | str
"""A known size, or the name of a kernel parameter."""


@dataclass(frozen=True)
class ArrayArgument:
    """An array that the function gets.

    Attributes:
        dtype: element type in memory.
        shape: sizes.
        wide: for half floats, the number of the f32 buffer that the function works on instead.
        written: whether its elements are results.
    """

    dtype: DType
    shape: tuple[Size, ...]
    wide: int | None = None
    written: bool = False


@dataclass(frozen=True)
class OpaqueKernel:
    """A function with everything that its compiled form depends on.

    Attributes:
        name: for humans.
        function: the op's function.
        arrays: one for each leading buffer; f32 copies of half arrays are buffers after these.
        numbers: integers and floats as they are, parameters by name.
        params: names of the parameters.
        items: number of independent work items; None: serial.
        splits: the function takes the thread's number and count and divides the work itself.
    """

    name: str
    function: Callable[..., int]
    arrays: tuple[ArrayArgument, ...]
    numbers: tuple[int | float | str, ...]
    params: tuple[str, ...]
    items: Size | None
    splits: bool = False

    @cached_property
    def text(self) -> str:
        """Canonical text: equal for kernels with equal object code."""
        lines = [f"opaque({', '.join(self.params)}) {fingerprint(self.function)}"]
        for a in self.arrays:
            wide = "" if a.wide is None else f" in f32 buffer {a.wide}"
            lines.append(f"  {a.dtype}{list(a.shape)}{wide}{' written' if a.written else ''}")
        lines.append(f"  numbers {list(self.numbers)!r} items {self.items}")
        return "\n".join(lines) + "\n"

    @cached_property
    def symbol(self) -> str:
        """Name of the function in object code."""
        return "dhc_o_" + hashlib.sha256(self.text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class LoweredOpaque:
    """A kernel and how to call it.

    Attributes:
        kernel: buffers are the operands, the results, the count if the op has one, then the scratch buffers.
        params: the dims whose run-time values are the kernel's parameters, in order.
        scratch: element type and shape of each scratch buffer: those of the op, then f32 copies of half arrays.
    """

    kernel: OpaqueKernel
    params: tuple[Dim, ...]
    scratch: tuple[tuple[DType, tuple[Dim, ...]], ...]


def lower_opaque(node: Node) -> LoweredOpaque:
    """The kernel of a node of an opaque op; half floats are computed in f32.

    Raises:
        CompileError: the op is of another kind.
    """
    kind = node.op.kind
    if not isinstance(kind, Opaque):
        raise CompileError(f"{node.op.name} is not an opaque op", where=str(node.location))
    try:
        return _lower(node, kind, SizeSymbols([node]))
    except (TypeError, ValueError, AssertionError, DhcError):
        # An op that needs to know a size (the width of index tuples) gets the sizes as they are.
        return _lower(node, kind, SizeSymbols([node], enabled=False))


def _lower(node: Node, kind: Opaque, sizes: SizeSymbols) -> LoweredOpaque:
    call = sizes.call(node)
    params: dict[Dim, str] = {}

    def size(dim: Dim) -> Size:
        return int(dim) if not isinstance(dim, SymExpr) else params.setdefault(dim, f"n{len(params)}")

    scratch = [(as_dtype(d), tuple(shape)) for d, shape in (kind.scratch(call) if kind.scratch else ())]
    given = [(t.dtype, t.shape, False) for t in call.types]
    shapes = kind.bounds(call) if kind.bounds is not None else [t.shape for t in call.results]
    given += [(t.dtype, tuple(shape), True) for t, shape in zip(call.results, shapes, strict=True)]
    if kind.count:
        given.append((i64, (1,), True))
    first_wide = len(given) + len(scratch)
    arrays: list[ArrayArgument] = []
    copies: list[tuple[DType, tuple[Dim, ...]]] = []
    for dtype, shape, written in given:
        wide = None
        if dtype in HALF:
            wide = first_wide + len(copies)
            copies.append((f32, (symbols.product(shape),)))
        passed = (symbols.product(shape),) if kind.flat else shape
        arrays.append(ArrayArgument(dtype, tuple(size(d) for d in passed), wide, written))
    scratch = [(f32 if d in HALF else d, shape) for d, shape in scratch]
    for dtype, shape in scratch:
        passed = (symbols.product(shape),) if kind.flat else shape
        arrays.append(ArrayArgument(dtype, tuple(size(d) for d in passed)))
    numbers = tuple(_number(n, size) for n in (kind.args(call) if kind.args else ()))
    # With half floats one thread converts and computes: conversion by several would need a barrier in between.
    items = size(kind.parallel(call)) if kind.parallel else None
    kernel = OpaqueKernel(node.op.name, kind.function, tuple(arrays), numbers, tuple(params.values()), items)
    all_scratch = tuple((d, tuple(sizes.concrete(x) for x in shape)) for d, shape in (*scratch, *copies))
    return LoweredOpaque(kernel, tuple(sizes.concrete(d) for d in params), all_scratch)


def _number(value: Any, size: Callable[[Dim], Size]) -> int | float | str:
    if isinstance(value, SymExpr):
        return size(value)
    if isinstance(value, float):
        return value
    return int(value)


def helpers_of(function: Callable[..., Any]) -> dict[str, FunctionType]:
    """The plain Python functions that a function calls by a global name, sorted by that name."""
    code = getattr(function, "__code__", None)
    if code is None:
        return {}
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    found = {name: function.__globals__.get(name) for name in sorted(names)}
    return {name: value for name, value in found.items() if isinstance(value, FunctionType)}


def source_of(function: Callable[..., Any]) -> str:
    """The source of a function, after that of the functions it calls."""
    parts: dict[str, None] = {}

    def visit(each: Callable[..., Any]) -> None:
        for helper in helpers_of(each).values():
            visit(helper)
        parts[inspect.getsource(each)] = None

    visit(function)
    return "\n\n".join(parts)


def fingerprint(function: Callable[..., Any]) -> str:
    """A hash of what a function does: its source, the numbers among its globals and the functions that it calls."""
    digest = hashlib.sha256()
    code = function.__code__
    try:
        digest.update(inspect.getsource(function).encode())
    except (OSError, TypeError):
        _update_from_code(digest, code)
    for name in sorted(_global_names(code)):
        value = function.__globals__.get(name)
        if isinstance(value, (bool, int, float, str, tuple)):
            digest.update(f"{name}={value!r};".encode())
    for name, helper in helpers_of(function).items():
        digest.update(f"{name}={fingerprint(helper)};".encode())
    for cell, name in zip(function.__closure__ or (), code.co_freevars):
        digest.update(f"{name}={cell.cell_contents!r};".encode())
    return digest.hexdigest()[:32]


def _global_names(code: CodeType) -> set[str]:
    return set(code.co_names)


def _update_from_code(digest: Any, code: CodeType) -> None:
    digest.update(code.co_code)
    for constant in code.co_consts:
        digest.update(repr(constant).encode() if not isinstance(constant, CodeType) else constant.co_code)
    digest.update(repr(code.co_names).encode())
