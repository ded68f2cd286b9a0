"""The graph API: one function for each op, made from the op's record.

    import dhc

    graph = dhc.Graph("net")
    x = graph.input("x", "f32", ["N", 4])
    y = dhc.ops.softmax(dhc.ops.relu(x) * 2 + 1, axis=-1)
    graph.output(y, names=["y"])

Operands come first, attributes by name. Python numbers and NumPy arrays become constants. Ops without operands
(`constant`, `iota`, `random_normal`, ...) take the graph as their first argument. ``help(dhc.ops.conv)`` shows the
record; errors name the line of the caller.
"""

from __future__ import annotations

import difflib
import inspect
import keyword
from collections.abc import Callable
from functools import cache
from typing import Any

from dhc.errors import UsageError
from dhc.ir import registry
from dhc.ir.builder import Builder, builder_of
from dhc.ir.dtypes import DType, ordered
from dhc.ir.graph import Graph, Value
from dhc.ir.location import caller_location
from dhc.ir.op import REQUIRED, OpDef


def constant(graph: Graph | Value, value: Any, dtype: DType | str | None = None, name: str = "") -> Value:
    """A tensor known when the graph is built.

    Args:
        graph: the graph, or any value of it.
        value: a number, nested lists or an array.
        dtype: element type; by default the array's own (Python floats: f32, ints: i64).
        name: a hint for printing.
    """
    home = graph.graph if isinstance(graph, Value) else graph
    return Builder(home).constant(value, dtype, name)


def _document(op: OpDef) -> str:
    lines = [op.doc, ""]
    if op.operands:
        lines.append("Operands:")
        for o in op.operands:
            kinds = f"like {o.same}" if o.same else ", ".join(d.name for d in ordered(o.dtypes))
            note = " (any number)" if o.variadic else " (optional)" if o.optional else ""
            lines.append(f"    {o.name}{note}: {kinds}")
    if op.attrs:
        lines.append("Attributes:")
        for a in op.attrs:
            default = "" if a.default is REQUIRED else f" = {a.default!r}"
            choices = f"; one of {', '.join(a.choices)}" if a.choices else ""
            lines.append(f"    {a.name}: {a.kind}{default}{': ' + a.doc if a.doc else ''}{choices}")
    if op.source:
        lines.append(f"Source: {op.source}")
    return "\n".join(lines).rstrip()


def _signature(op: OpDef) -> inspect.Signature:
    parameters: list[inspect.Parameter] = []
    if not op.operands:
        parameters.append(inspect.Parameter("graph", inspect.Parameter.POSITIONAL_ONLY))
    for o in op.operands:
        if o.variadic:
            parameters.append(inspect.Parameter(o.name, inspect.Parameter.VAR_POSITIONAL))
        else:
            default: Any = None if o.optional else inspect.Parameter.empty
            parameters.append(inspect.Parameter(o.name, inspect.Parameter.POSITIONAL_ONLY, default=default))
    for a in op.attrs:
        name = a.name + "_" if keyword.iskeyword(a.name) else a.name
        default = inspect.Parameter.empty if a.default is REQUIRED and a.kind != "symbol" else a.default
        default = "" if a.kind == "symbol" else default
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
    parameters.append(inspect.Parameter("regions", inspect.Parameter.KEYWORD_ONLY, default=()))
    parameters.append(inspect.Parameter("name", inspect.Parameter.KEYWORD_ONLY, default=""))
    return inspect.Signature(parameters)


@cache
def _function(op: OpDef) -> Callable[..., Any]:
    def apply(*operands: Any, regions: Any = (), name: Any = "", **attrs: Any) -> Any:
        if operands and isinstance(operands[0], Graph):
            builder, operands = Builder(operands[0]), operands[1:]
        elif not op.operands:
            raise UsageError(
                f"{op.name} has no operands that tell the graph",
                where=str(caller_location()),
                hint=f"give it first: dhc.ops.{op.name}(graph, ...)",
            )
        else:
            if len(operands) == 1 and op.operands[0].variadic and isinstance(operands[0], (list, tuple)):
                operands = tuple(operands[0])
            builder = builder_of(*operands)
        while operands and operands[-1] is None:  # optional operands left out
            operands = operands[:-1]
        names = (name,) if isinstance(name, str) and name else tuple(name)
        given = {key[:-1] if keyword.iskeyword(key[:-1]) else key: value for key, value in attrs.items()}
        return builder.call(op, *operands, attrs=given, regions=regions, names=names)

    public = op.name + "_" if keyword.iskeyword(op.name) else op.name
    apply.__name__ = apply.__qualname__ = public
    apply.__doc__ = _document(op)
    apply.__module__ = __name__
    apply.__signature__ = _signature(op)  # type: ignore[attr-defined]
    return apply


def __getattr__(name: str) -> Callable[..., Any]:
    """The function of an op (PEP 562); ops named like a Python keyword end in an underscore: `if_`."""
    if name.startswith("__"):
        raise AttributeError(name)
    plain = name[:-1] if keyword.iskeyword(name[:-1]) else name
    if not registry.has(plain):
        close = difflib.get_close_matches(name, [op.name for op in registry.all_ops()], 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise AttributeError(f"module 'dhc.ops' has no op {name!r}{hint}")
    return _function(registry.get(plain))


def __dir__() -> list[str]:
    """The ops."""
    return sorted(op.name + "_" if keyword.iskeyword(op.name) else op.name for op in registry.all_ops())
