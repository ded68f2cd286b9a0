"""The real models of the shared data with small input shapes, and how they are run in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.onnxruntime_session import onnxruntime_session

# File stem -> input shapes that the interpreter runs in a moment. The torch export fixes 256x256x256 and is
# given a smaller shape by rewriting its declaration, see `shrunk`.
SHAPES: dict[str, tuple[int, ...]] = {
    "brain_meshnet_11ch_3cls": (1, 1, 12, 10, 9),
    "brain_meshnet_20ch_3cls_elu": (1, 1, 9, 10, 8),
    "brain_meshnet_30ch_18cls_elu": (1, 1, 8, 9, 7),
    "brain_meshnet_5ch_3cls": (2, 1, 12, 10, 9),
    "brain_meshnet_5ch_3cls_torchexport": (1, 1, 12, 10, 9),
    "brain_unet3d_small": (1, 1, 16, 16, 16),
    "detect_fastestdet_coco": (1, 3, 352, 352),
    "eeg_eegnet_8_2_erp": (3, 1, 60, 151),
    "face_ultraface_rfb320": (1, 3, 240, 320),
    "histology_tissue_mlp_eddl": (7, 3),
    "kws_micro_fp32": (1, 1960),
    "kws_micro_int8_qdq": (2, 1960),
    "mnist_cnn": (1, 1, 28, 28),
    "mnist_cnn_int8_qoperator": (1, 1, 28, 28),
    "retina_wnet_vessels": (1, 3, 32, 36),
    "retina_wnet_vessels_int8_qdq": (1, 3, 32, 36),
    "superres_x3": (1, 1, 224, 224),
}


def model_bytes(path: Path) -> bytes:
    """The model, with its input shape freed where it is larger than a test can run."""
    if path.stem not in ("brain_meshnet_5ch_3cls_torchexport", "brain_unet3d_small"):
        return path.read_bytes()
    import onnx

    model = onnx.load(path)
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if axis >= 2:
                dim.dim_param = f"size_{info.name}_{axis}"
    return bytes(model.SerializeToString())


def sample(path: Path) -> np.ndarray:
    """Input of the model's kind: image models get values in their range."""
    shape = SHAPES[path.stem]
    values = np.random.default_rng(len(path.stem)).random(shape, dtype=np.float32)
    if path.stem == "brain_unet3d_small":  # noise is no brain: every probability would vanish
        distance = sum(((g - 7.5) / 4) ** 2 for g in np.meshgrid(*[np.arange(16)] * 3))
        values = (np.exp(-distance) * (0.9 + 0.1 * values)).astype(np.float32)
    scale = 255.0 if path.stem.startswith(("mnist", "histology")) else 1.0
    return (values * scale).astype(np.float32)


def reference(data: bytes, x: np.ndarray) -> list[np.ndarray]:
    """Outputs of onnxruntime without graph optimisation.

    Its optimised int8 models fuse quantized operators into integer kernels that round differently; unfused it does
    what the model says, node by node.
    """
    session = onnxruntime_session(data, optimize=False, threads=1)
    outputs: Any = session.run(None, {session.get_inputs()[0].name: x})
    return list(outputs)


def assert_close(actual: list[np.ndarray], wanted: list[np.ndarray], quantized: bool) -> None:
    """Max difference within 1e-4 of the largest output; int8 models may differ by one quantization step."""
    assert len(actual) == len(wanted)
    for a, w in zip(actual, wanted):
        assert a.shape == w.shape
        assert a.dtype == w.dtype
        largest = float(np.abs(w.astype(np.float64)).max())
        difference = np.abs(a.astype(np.float64) - w.astype(np.float64))
        if not quantized:
            assert float(difference.max()) <= 1e-4 * largest
            continue
        # A sum that lies on a rounding boundary may go either way; most elements are equal.
        assert float((difference > 1e-4 * largest).mean()) <= 0.02
        assert float(difference.max()) <= 0.1 * largest
