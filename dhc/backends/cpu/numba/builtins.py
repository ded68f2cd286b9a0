"""What functions of ops may call: `min` and `max` of two numbers, and functions like themselves.

Numba compiles its own `min` and `max` as separate functions for the machine that it runs on; ours become a comparison
and a selection right where they stand, which is faster to compile and the same for every target. The meaning is
Python's: the first operand unless the second is smaller (larger). Functions that a function calls are written into it
before anything is typed, so that one function is all that is compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

from dhc.backends.cpu.numba.opaque import helpers_of


@functools.cache
def replacements() -> dict[str, Any]:
    """The names to replace in a function's globals."""
    from numba.core import types
    from numba.core.extending import intrinsic

    def build(name: str, operator: str) -> Any:
        def typed(typing_context: Any, a: Any, b: Any) -> Any:
            common = typing_context.unify_types(a, b)
            if not isinstance(common, (types.Integer, types.Float, types.Boolean)):
                return None
            if isinstance(common, types.IntegerLiteral):
                common = types.int64

            def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
                first, second = (
                    context.cast(builder, value, source, common) for value, source in zip(operands, signature.args)
                )
                if isinstance(common, types.Float):
                    better = builder.fcmp_ordered(operator, second, first)
                elif isinstance(common, types.Integer) and common.signed:
                    better = builder.icmp_signed(operator, second, first)
                else:
                    better = builder.icmp_unsigned(operator, second, first)
                return builder.select(better, second, first)

            return common(a, b), generate

        typed.__name__ = typed.__qualname__ = name
        return intrinsic(typed)

    return {"min": build("dhc_min", "<"), "max": build("dhc_max", ">")}


@functools.cache
def _inlined(helper: FunctionType) -> Any:
    import numba

    return numba.njit(inline="always")(whole(helper))


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as Numba takes it: `min` and `max` as intrinsics, functions that it calls written into it."""
    if not isinstance(function, FunctionType):
        return function
    helpers = {name: _inlined(helper) for name, helper in helpers_of(function).items()}
    if not helpers and not {"min", "max"} & set(function.__code__.co_names):
        return function
    scope = {**function.__globals__, **replacements(), **helpers}
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__module__ = function.__module__
    copy.__qualname__ = function.__qualname__
    return copy
