"""The classification networks that ship in the onnx package: the size and shape of the real ones, weights made up."""

from __future__ import annotations

from pathlib import Path


def light_model(name: str) -> Path:
    """Path of a model such as ``resnet50``.

    Raises:
        FileNotFoundError: this version of the onnx package has none of that name.
    """
    import onnx

    path = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"the onnx package holds no {path.name}")
    return path
