"""The op registry: name -> record. Ops of this package are loaded on first use, third parties' through entry points."""

from __future__ import annotations

import difflib
from importlib import import_module

from dhc_runtime.errors import DhcError

from dhc.ir.op import OpDef

_OPS: dict[str, OpDef] = {}
_LOADED = False

ENTRY_POINT_GROUP = "dhc.ops"


def register(op: OpDef) -> OpDef:
    """Adds an op.

    Raises:
        ValueError: the name is taken, or the record contradicts itself.
    """
    if op.name in _OPS:
        raise ValueError(f"an op {op.name!r} is already registered")
    if any(o.variadic for o in op.operands[:-1]):
        raise ValueError(f"{op.name}: only the last operand may be variadic")
    _OPS[op.name] = op
    return op


def load() -> None:
    """Loads the ops of dhc and of installed packages that offer the entry point group ``dhc.ops``."""
    global _LOADED
    if _LOADED:
        return
    _LOADED = True
    import_module("dhc.ir.ops")
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()


def get(name: str) -> OpDef:
    """The record of an op.

    Raises:
        DhcError: there is no such op; the message suggests close names.
    """
    load()
    op = _OPS.get(name)
    if op is None:
        close = difflib.get_close_matches(name, _OPS, 3)
        raise DhcError(f"there is no op {name!r}", hint=f"did you mean {' or '.join(close)}?" if close else None)
    return op


def has(name: str) -> bool:
    """True when an op of that name exists."""
    load()
    return name in _OPS


def all_ops() -> list[OpDef]:
    """All records, sorted by name."""
    load()
    return [_OPS[name] for name in sorted(_OPS)]
