"""dhc, the DeepHealth compiler: models in, programs for the hardware at hand out.

    import dhc

    graph = dhc.load_onnx("model.onnx")
    artifact = dhc.compile(graph, targets=["cpu"])
    artifact.save("model.dhc")

Every public name is imported when it is first used, so that ``import dhc`` stays well under 150 ms.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> (module that defines it, attribute there; None for the module itself).
_LAZY: dict[str, tuple[str, str | None]] = {
    "Artifact": ("dhc.compiler", "Artifact"),
    "DhcError": ("dhc.errors", "DhcError"),
    "Dim": ("dhc.ir", "Dim"),
    "Graph": ("dhc.ir", "Graph"),
    "ImageType": ("dhc.ir", "ImageType"),
    "Node": ("dhc.ir", "Node"),
    "QuantType": ("dhc.ir", "QuantType"),
    "TensorType": ("dhc.ir", "TensorType"),
    "Value": ("dhc.ir", "Value"),
    "compile": ("dhc.compiler", "compile"),
    "errors": ("dhc.errors", None),
    "load_onnx": ("dhc.frontend.onnx", "load_onnx"),
    "ops": ("dhc.ops", None),
    "save_onnx": ("dhc.frontend.onnx", "save_onnx"),
}

__all__ = ["__version__", *sorted(_LAZY)]  # noqa: PLE0604 - the table above is the list


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'dhc' has no attribute {name!r}") from None
    value = import_module(module)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Lists the lazy names too, for completion."""
    return sorted({*globals(), *_LAZY})
