"""Backends by name. Third parties add theirs through the entry point group ``dhc.backends``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module

from dhc_runtime.errors import UsageError

from dhc.backends.protocol import Backend

ENTRY_POINT_GROUP = "dhc.backends"

_FACTORIES: dict[str, tuple[str, str]] = {
    "cpu": ("dhc.backends.cpu.backend", "CpuBackend"),
    "reference": ("dhc.backends.reference", "ReferenceBackend"),
    "null": ("dhc.backends.null", "NullBackend"),
}
_REGISTERED: dict[str, Callable[[], Backend]] = {}
_OPEN: dict[str, Backend] = {}


def register_backend(name: str, factory: Callable[[], Backend]) -> None:
    """Adds a backend under a name.

    Raises:
        ValueError: the name is taken.
    """
    if name in _FACTORIES or name in _REGISTERED:
        raise ValueError(f"a backend {name!r} is already registered")
    _REGISTERED[name] = factory


def backend_names() -> list[str]:
    """Names of all backends, dhc's own first."""
    from importlib.metadata import entry_points

    third = [e.name for e in entry_points(group=ENTRY_POINT_GROUP)]
    return list(dict.fromkeys([*_FACTORIES, *_REGISTERED, *third]))


def get_backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        UsageError: there is none; the message lists what exists.
    """
    if name in _OPEN:
        return _OPEN[name]
    factory: Callable[[], Backend] | None = _REGISTERED.get(name)
    if factory is None and name in _FACTORIES:
        module, attribute = _FACTORIES[name]
        factory = getattr(import_module(module), attribute)
    if factory is None:
        from importlib.metadata import entry_points

        found = [e for e in entry_points(group=ENTRY_POINT_GROUP) if e.name == name]
        factory = found[0].load() if found else None
    if factory is None:
        names = backend_names()
        close = difflib.get_close_matches(name, names, 1)
        raise UsageError(
            f"there is no target {name!r}; targets are {', '.join(names)}",
            hint=f"did you mean {close[0]!r}?" if close else None,
        )
    _OPEN[name] = factory()
    return _OPEN[name]
