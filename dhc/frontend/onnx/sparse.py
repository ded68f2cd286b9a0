"""Sparse tensors of ONNX (coordinate format) to dense arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dhc_runtime.errors import ModelError, ResourceError

from dhc.frontend.onnx.tensors import to_array

MAX_DENSE_BYTES = 2**28
"""Sparse tensors that would take more memory as dense ones are refused."""


def to_dense(sparse: Any, folder: Path | None = None) -> np.ndarray:
    """The dense array of a SparseTensorProto.

    Raises:
        ModelError: shape, indices and values do not fit each other.
        ResourceError: the dense array would be too large.
    """
    name = sparse.values.name
    shape = tuple(int(d) for d in sparse.dims)
    if any(d < 0 for d in shape):
        raise ModelError(f"sparse tensor {name!r} declares the impossible shape {list(shape)}")
    values = to_array(sparse.values, folder)
    indices = to_array(sparse.indices, folder)
    total = math.prod(shape)
    if values.ndim != 1 or indices.dtype != np.int64:
        raise ModelError(f"sparse tensor {name!r} needs a vector of values and int64 indices")
    if total * values.itemsize > MAX_DENSE_BYTES:
        raise ResourceError(
            f"sparse tensor {name!r} of shape {list(shape)} takes {total * values.itemsize} bytes as a dense one",
            budget=MAX_DENSE_BYTES,
        )
    flat = _linear(indices, shape, name)
    if len(flat) != len(values):
        raise ModelError(f"sparse tensor {name!r} has {len(values)} values and {len(flat)} indices")
    if len(flat) and (flat.min() < 0 or flat.max() >= total or np.any(np.diff(flat) <= 0)):
        raise ModelError(f"sparse tensor {name!r} has indices that are out of range or not ascending")
    dense = np.zeros(total, values.dtype)
    dense[flat] = values
    return dense.reshape(shape)


def _linear(indices: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Row-major positions from linear indices or coordinates."""
    if indices.ndim == 1:
        return indices
    if indices.ndim != 2 or indices.shape[1] != len(shape):
        raise ModelError(f"sparse tensor {name!r} has indices of shape {list(indices.shape)}")
    bounds = np.array(shape, np.int64)
    if indices.size and (indices.min() < 0 or np.any(indices >= bounds)):
        raise ModelError(f"sparse tensor {name!r} has indices that are out of range or not ascending")
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    flat: np.ndarray = indices @ np.array(strides, np.int64)
    return flat
