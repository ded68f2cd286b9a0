"""What each extra of dhc brings; `dhc doctor` prints it. In step with pyproject.toml, which a test checks."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Extra:
    """An optional part.

    Attributes:
        name: as in ``pip install 'dhc[name]'``.
        brings: what becomes possible.
        packages: distributions that it installs everywhere (those bound to some platforms are left out).
    """

    name: str
    brings: str
    packages: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """Its packages that are not installed."""
        return [package for package in self.packages if installed_version(package) is None]

    @property
    def command(self) -> str:
        """How to install it."""
        return f"pip install 'dhc[{self.name}]'"


EXTRAS = (
    Extra(
        "imaging",
        "reading and writing of pictures, TIFF, DICOM with its compressions and NIfTI",
        ("dicom-anonymizer", "imagecodecs", "nibabel", "pillow", "pydicom", "pylibjpeg", "tifffile"),
    ),
    Extra("wsi", "whole slides", ("openslide-bin", "openslide-python")),
    Extra("demo", "dhc demo: real digits and the montage", ("pillow", "scikit-learn")),
    Extra("opencl", "OpenCL devices (planned)", ("pyopencl",)),
    Extra("cuda", "NVIDIA GPUs (planned)", ("numba-cuda",)),
    Extra("fpga", "FPGA boards (planned); pynq itself comes with the board's image", ()),
    Extra(
        "bench",
        "comparing with onnxruntime, OpenVINO, MNN and ncnn",
        ("MNN", "ncnn", "onnxruntime", "openvino", "pnnx", "psutil"),
    ),
)


def installed_version(package: str) -> str | None:
    """Version of a distribution, None when it is not installed; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
