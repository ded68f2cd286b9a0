"""The names that printed Numba source uses on CPUs."""

from __future__ import annotations

import functools
import math
from typing import Any

from dhc.ir.dtypes import ALL


@functools.cache
def prelude() -> dict[str, Any]:
    """Globals for the functions of `loop/numba_source.py`."""
    from numba.core import types
    from numba.np.numpy_support import from_dtype

    scope: dict[str, Any] = {"math": math}
    for dtype in ALL.values():
        if (dtype.is_integer or dtype.name in ("f32", "f64")) and dtype.bits >= 8:
            kind = from_dtype(dtype.numpy)
            scope[dtype.name] = kind
            scope[f"bits_{dtype.name}"] = _bitcast(kind, dtype.name)
    for name in ("floor", "ceil", "trunc", "rint", "sqrt"):
        scope[name] = _llvm_unary(name, name)
    scope["fabs"] = _llvm_unary("fabs", "fabs")
    scope["low"], scope["high"] = _extreme("low", "min"), _extreme("high", "max")
    scope["div"], scope["rem"] = _quotient("div"), _quotient("rem")
    scope["first"], scope["last"] = _share(types, False), _share(types, True)
    return scope


def _named(function: Any, name: str) -> Any:
    from numba.core.extending import intrinsic

    function.__name__ = function.__qualname__ = f"dhc_{name}"
    return intrinsic(function)


def _bitcast(kind: Any, name: str) -> Any:
    def typed(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            return builder.bitcast(operands[0], context.get_value_type(kind))

        return kind(x), generate

    return _named(typed, f"bits_{name}")


def _llvm_unary(name: str, function: str) -> Any:
    def typed(typing_context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            callee = builder.module.declare_intrinsic(f"llvm.{function}", [operands[0].type])
            return builder.call(callee, operands)

        return x(x), generate

    return _named(typed, name)


def _extreme(name: str, function: str) -> Any:
    def typed(typing_context: Any, a: Any, b: Any) -> Any:
        from numba.core import types

        if a != b:
            return None

        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            left, right = operands
            if isinstance(a, types.Float):
                from llvmlite import ir

                kind = left.type
                callee = builder.module.declare_intrinsic(
                    f"llvm.{function}imum", [kind], ir.FunctionType(kind, [kind, kind])
                )
                return builder.call(callee, operands)
            operator = "<" if function == "min" else ">"
            compare = builder.icmp_signed if a.signed else builder.icmp_unsigned
            return builder.select(compare(operator, left, right), left, right)

        return a(a, b), generate

    return _named(typed, name)


def _quotient(name: str) -> Any:
    def typed(typing_context: Any, a: Any, b: Any) -> Any:
        from numba.core import types

        a, b = types.unliteral(a), types.unliteral(b)
        if a != b:
            return None

        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            signed = {"div": builder.sdiv, "rem": builder.srem}
            unsigned = {"div": builder.udiv, "rem": builder.urem}
            return (signed if a.signed else unsigned)[name](*operands)

        return a(a, b), generate

    return _named(typed, name)


def _share(types: Any, end: bool) -> Any:
    """First or last-plus-one index of a thread's part of a range, given out in units of `grain`."""

    def typed(typing_context: Any, extent: Any, grain: Any, tid: Any, nthreads: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            extent, grain, tid, nthreads = operands
            one = grain.type(1)
            units = builder.sdiv(builder.sub(builder.add(extent, grain), one), grain)
            chunk = builder.sdiv(builder.sub(builder.add(units, nthreads), one), nthreads)
            chunk = builder.mul(chunk, grain)
            bound = builder.mul(builder.add(tid, one) if end else tid, chunk)
            return builder.select(builder.icmp_signed("<", bound, extent), bound, extent)

        return types.int64(types.int64, types.int64, types.int64, types.int64), generate

    return _named(typed, "last" if end else "first")
