"""Reading and writing of images, volumes and signals.

    from dhc.ecvl_ops import io

    image = io.read("scan.nii.gz")                   # an Image: samples, layout, spacing, place in the patient
    head = io.read("scan.nii.gz", region={"D": (0, 20)})
    volume = io.read_series("series/")               # slices of a DICOM series, sorted by position
    print(io.probe("slide.svs").levels)              # what a header says; nothing is decoded
    io.write(image, "scan.png")

Formats are recognised by their content. What a file declares is checked against limits before memory is taken, and
decoding happens in a process of its own with bounded memory and time, unless ``trusted=True``. Libraries are imported
when they are needed; pip install 'dhc[imaging]' brings them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "DEFAULT": "limits",
    "FORMATS": "formats",
    "Header": "formats",
    "Limits": "limits",
    "probe": "api",
    "read": "api",
    "read_series": "api",
    "series_in": "api",
    "write": "api",
}

__all__ = sorted(_LAZY)  # noqa: PLE0605 - the table above is the list


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The lazy names too, for completion."""
    return sorted({*globals(), *_LAZY})
