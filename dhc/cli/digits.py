"""The network of the demo: fitted by scikit-learn on its real handwritten digits, written as ONNX by hand.

A fixed bank of nine 3x3 filters (identity and eight edge directions), ReLU and 2x2 average pooling feed one hidden
layer. The filters need no training, so fitting takes a few seconds, and the file has a convolution, a pooling and two
matrix products in it: what a compiler must get right.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dhc.errors import MissingExtraError

_SEED = 0
_EPOCHS = 60
_HIDDEN = 128
_SIDE = 8
_BRIGHTEST = 16.0


@dataclass(frozen=True)
class DigitsData:
    """Scikit-learn's digits, split once and for all.

    Images are float32 ``[N, 64]`` with the package's own grey values 0..16; labels are the digits 0..9.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class DigitsNetwork:
    """Weights of the fitted network: ``(filters [9,1,3,3], ((w [in,out], b [out]), ...))``."""

    filters: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]


def load_data() -> DigitsData:
    """Loads the 1,797 images and keeps a stratified quarter of them away from fitting.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtraError("demo", "dhc demo (scikit-learn's handwritten digits)") from None
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images.astype(np.float32), labels, test_size=0.25, stratify=labels, random_state=_SEED)
    return DigitsData(parts[0], parts[2], parts[1], parts[3])


def fit(data: DigitsData) -> DigitsNetwork:
    """Fits the dense layers on the training images and on copies of them shifted by one pixel in four directions."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    filters = _filter_bank()
    images = data.train_images.reshape(-1, _SIDE, _SIDE)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    shifts = [(1, 1), (1, 0), (1, 2), (0, 1), (2, 1)]
    augmented = np.concatenate([padded[:, y : y + _SIDE, x : x + _SIDE] for y, x in shifts])
    labels = np.tile(data.train_labels, len(shifts))

    model = MLPClassifier(
        (_HIDDEN,), alpha=1e-3, batch_size=128, learning_rate_init=3e-3, max_iter=_EPOCHS, random_state=_SEED
    )
    # Matrices this small gain nothing from a second thread, and on a busy machine BLAS threads wait for each other.
    # One thread also sums in one order, so every run fits the same weights.
    with warnings.catch_warnings(), threadpool_limits(1):
        # The number of epochs is chosen for a demo's patience, not for the last digit of the loss.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(_features(augmented, filters), labels)
    layers = zip(model.coefs_, model.intercepts_, strict=True)
    return DigitsNetwork(filters, tuple((w.astype(np.float32), b.astype(np.float32)) for w, b in layers))


def write_onnx(network: DigitsNetwork, path: Path) -> None:
    """Writes the network: ``image`` float32 ``[N,64]`` (grey values 0..16) to ``probabilities`` float32 ``[N,10]``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, np.ndarray] = {
        "plane_shape": np.array([-1, 1, _SIDE, _SIDE], np.int64),
        "brightest": np.array(_BRIGHTEST, np.float32),
        "filters": network.filters,
    }
    nodes: list[Any] = [
        helper.make_node("Reshape", ["image", "plane_shape"], ["plane"], "as_plane"),
        helper.make_node("Div", ["plane", "brightest"], ["scaled"], "scale"),
        helper.make_node("Conv", ["scaled", "filters"], ["edges"], "edges", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["edges"], ["strokes"], "edges_relu"),
        helper.make_node("AveragePool", ["strokes"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["hidden0"], "flatten", axis=1),
    ]
    last = len(network.layers) - 1
    for index, (weight, bias) in enumerate(network.layers):
        constants[f"w{index}"], constants[f"b{index}"] = weight, bias
        dense = helper.make_node("Gemm", [f"hidden{index}", f"w{index}", f"b{index}"], [f"sum{index}"], f"dense{index}")
        nodes.append(dense)
        if index < last:
            nodes.append(helper.make_node("Relu", [f"sum{index}"], [f"hidden{index + 1}"], f"dense{index}_relu"))
    nodes.append(helper.make_node("Softmax", [f"sum{last}"], ["probabilities"], "softmax", axis=1))

    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", _SIDE * _SIDE])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    # Opset 17 and IR version 8 are read by every engine of the last years.
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="dhc demo"
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path))


def _filter_bank() -> np.ndarray:
    """The identity, four Sobel filters and four diagonal ones, ``[9,1,3,3]``; sums of magnitudes stay at most 1."""
    identity = np.zeros((3, 3))
    identity[1, 1] = 1.0
    straight = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]]) / 8.0
    diagonal = np.array([[2, 1, 0], [1, 0, -1], [0, -1, -2]]) / 8.0
    turned = [np.rot90(kernel, turns) for kernel in (straight, diagonal) for turns in range(4)]
    return np.array([identity, *turned], np.float32)[:, None]


def _features(images: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """What the front of the network computes, for fitting: ``[N,8,8]`` images to ``[N, 9*4*4]`` features."""
    padded = np.pad(images / np.float32(_BRIGHTEST), ((0, 0), (1, 1), (1, 1)))
    edges = np.zeros((len(images), len(filters), _SIDE, _SIDE), np.float32)
    for y in range(3):
        for x in range(3):
            edges += filters[None, :, 0, y, x, None, None] * padded[:, None, y : y + _SIDE, x : x + _SIDE]
    half = _SIDE // 2
    pooled = np.maximum(edges, 0).reshape(len(images), len(filters), half, 2, half, 2).mean((3, 5))
    return pooled.reshape(len(images), -1)
