"""What whole models are measured: the suite, the trained networks of the shared data, the light ones of onnx."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench.light_models import with_random_weights
from bench.networks import SUITE, cache_folder, model_file
from bench.signature import Signature

_LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip
# Sizes for inputs that the model leaves open, and for the networks that run on volumes of any size.
_SHARED: dict[str, tuple[int, ...]] = {
    "brain_meshnet_11ch_3cls": (1, 1, 64, 64, 64),
    "brain_meshnet_20ch_3cls_elu": (1, 1, 48, 48, 48),
    "brain_meshnet_30ch_18cls_elu": (1, 1, 48, 48, 48),
    "brain_meshnet_5ch_3cls": (1, 1, 64, 64, 64),
    "brain_unet3d_small": (1, 1, 128, 128, 128),
    "detect_fastestdet_coco": (1, 3, 352, 352),
    "eeg_eegnet_8_2_erp": (8, 1, 60, 151),
    "face_ultraface_rfb320": (1, 3, 240, 320),
    "histology_tissue_mlp_eddl": (65536, 3),
    "kws_micro_fp32": (1, 1960),
    "kws_micro_int8_qdq": (1, 1960),
    "mnist_cnn": (1, 1, 28, 28),
    "mnist_cnn_int8_qoperator": (1, 1, 28, 28),
    "retina_wnet_vessels": (1, 3, 512, 512),
    "retina_wnet_vessels_int8_qdq": (1, 3, 512, 512),
    "superres_x3": (1, 1, 224, 224),
}


@dataclass(frozen=True)
class Entry:
    """One model to measure.

    Attributes:
        name: in tables and for ``--only``.
        group: suite, shared or light.
        file: writes or finds the ONNX file; raises FileNotFoundError when it is not there.
        shape: of the only input, where the model leaves sizes open.
        allowed: largest difference to onnxruntime, as a share of the largest value.
    """

    name: str
    group: str
    file: Callable[[], Path]
    shape: tuple[int, ...] | None = None
    allowed: float = 1e-4

    def signature(self) -> Signature:
        """Inputs with their sizes and names of the outputs."""
        import onnx

        graph = onnx.load(str(self.file()), load_external_data=False).graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = {}
        for value in graph.input:
            if value.name not in constants:
                dims = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
                inputs[value.name] = self.shape or dims
        return Signature(inputs, tuple(output.name for output in graph.output))

    def feeds(self, signature: Signature) -> dict[str, np.ndarray]:
        """Random values in the range that the model takes."""
        rng = np.random.default_rng(5)
        return {name: _values(self, rng, shape) for name, shape in signature.inputs.items()}


def entries() -> list[Entry]:
    """All of them, the suite first."""
    found = [Entry(name, "suite", partial(model_file, name)) for name in SUITE]
    for name, shape in _SHARED.items():
        # onnxruntime fuses int8 operators into kernels that round differently.
        found.append(Entry(name, "shared", partial(_shared, name), shape, 0.1 if "int8" in name else 1e-4))
    found += [Entry(f"light_{name}", "light", partial(_light, name), (1, 3, 224, 224)) for name in _LIGHT]
    return found


def chosen(only: str) -> list[Entry]:
    """The entries that a list of names or groups selects; an empty one selects all.

    Raises:
        ValueError: a name that no entry and no group has.
    """
    words = {word for word in only.split(",") if word}
    known = entries()
    unknown = words - {e.name for e in known} - {e.group for e in known}
    if unknown:
        raise ValueError(f"no model {', '.join(sorted(unknown))}; there are {', '.join(e.name for e in known)}")
    return [e for e in known if not words or {e.name, e.group} & words]


def _shared(name: str) -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    source = Path(os.environ.get("DHC_SHARED_DATA", default)) / "models" / f"{name}.onnx"
    if not source.is_file():
        raise FileNotFoundError("not in the shared data (DHC_SHARED_DATA)")
    return _kept(name, source.read_bytes)


def _light(name: str) -> Path:
    return _kept(f"light_{name}", partial(with_random_weights, name))


def _kept(name: str, content: Callable[[], bytes]) -> Path:
    """A copy in the cache folder, where conversions may lie beside it."""
    path = cache_folder() / f"{name}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content())
    return path


def _values(entry: Entry, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if entry.group == "suite":
        return rng.standard_normal(shape, dtype=np.float32)
    x = rng.random(shape, dtype=np.float32)
    if entry.name == "brain_unet3d_small":  # noise is no brain: every probability would vanish
        squares = [((np.arange(size, dtype=np.float32) - size / 2) / (size / 4)) ** 2 for size in shape[2:]]
        distance = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
        x = np.exp(-distance) * (0.9 + 0.1 * x)
    elif entry.group == "light":  # images are centred on zero
        x = 4 * x - 2
    elif entry.name.startswith(("mnist", "histology")):
        x *= 255
    return np.ascontiguousarray(x, np.float32)
