"""Constants of an artifact: each distinct array once, named in order of first use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dhc_runtime.safetensors import Tensor

from dhc.ir.dtypes import MINIFLOATS
from dhc.ir.dtypes import dtype as as_dtype


class ConstantPool:
    """Collects arrays for ``weights.safetensors``.

    Attributes:
        arrays: name -> contiguous array, in order of first use.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._names: dict[str, str] = {}

    def add(self, array: np.ndarray) -> str:
        """Stores an array (once for equal dtype, shape and bytes) and returns its name."""
        stored = np.ascontiguousarray(array).reshape(array.shape)
        digest = hashlib.sha256(f"{stored.dtype}{stored.shape}".encode())
        digest.update(stored.reshape(-1).view(np.uint8) if stored.size else b"")
        key = digest.hexdigest()
        if key not in self._names:
            self._names[key] = f"w{len(self._names)}"
            self.arrays[self._names[key]] = stored
        return self._names[key]


def safetensors_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as safetensors entries; what the format lacks (complex, small floats) goes in as bytes."""
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        dtype = as_dtype(array.dtype)
        raw: Any = array.reshape(-1).view(np.uint8)
        if dtype.kind == "c" or dtype in MINIFLOATS:
            tensors[name] = Tensor("U8", (array.nbytes,), raw)
        else:
            label = "BF16" if dtype.name == "bf16" else dtype.name.upper()
            tensors[name] = Tensor(label, array.shape, raw)
    return tensors
