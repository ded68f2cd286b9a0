"""dhc_runtime: loads and runs artifacts of dhc; needs NumPy and the standard library alone.

Example::

    import dhc_runtime

    with dhc_runtime.load("model.dhc") as session:
        print(session.inputs, session.outputs)
        scores = session.run({"image": image})["scores"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dhc_runtime.errors import (
    ArtifactError,
    DeviceError,
    DhcError,
    MissingExtraError,
    ModelError,
    ResourceError,
    ShapeError,
    TypeMismatchError,
    UsageError,
)

if TYPE_CHECKING:
    from dhc_runtime.session import Session, TensorInfo, load
    from dhc_runtime.trace import StepTime

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "DeviceError",
    "DhcError",
    "MissingExtraError",
    "ModelError",
    "ResourceError",
    "Session",
    "ShapeError",
    "StepTime",
    "TensorInfo",
    "TypeMismatchError",
    "UsageError",
    "load",
]

_LAZY = {"Session": "session", "TensorInfo": "session", "load": "session", "StepTime": "trace"}


def __getattr__(name: str) -> object:
    # The compiler imports the errors at its start: it must not pay for ctypes, mmap and the rest until something is
    # loaded.
    if name in _LAZY:
        import importlib

        value: object = getattr(importlib.import_module("dhc_runtime." + _LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError("module 'dhc_runtime' has no attribute {!r}".format(name))
