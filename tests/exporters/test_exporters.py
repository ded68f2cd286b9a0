"""What torch.onnx really writes, by both of its exporters, equals onnxruntime for two bindings of its free sizes."""

from __future__ import annotations

import io
import multiprocessing
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

REASON = "torch (the `exporters` extra) is not installed"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("onnxscript", reason="onnxscript (the `exporters` extra) is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

# The fast path of inference is an operator that the older exporter does not know.
torch.backends.mha.set_fastpath_enabled(False)

import dhc  # noqa: E402
from tests.exporters import convolutional, sequential  # noqa: E402

TOLERANCE = 1e-4


class Architecture(NamedTuple):
    """A model and its inputs: shapes with names where a size is free, and the two bindings of the names."""

    make: Callable[[], Any]
    inputs: dict[str, tuple[int | str, ...]]
    bindings: tuple[dict[str, int], dict[str, int]]


def _images(channels: int, first: int, second: int) -> tuple[dict[str, Any], Any]:
    shape = {"x": ("batch", channels, "height", "width")}
    return shape, ({"batch": 2, "height": first, "width": first}, {"batch": 3, "height": second, "width": first})


BATCH = ({"batch": 2}, {"batch": 5})

ARCHITECTURES: dict[str, Architecture] = {
    "unet2d": Architecture(lambda: convolutional.UNet(2), *_images(1, 16, 24)),
    "unet3d": Architecture(
        lambda: convolutional.UNet(3, 2),
        {"x": ("batch", 1, "depth", 8, 8)},
        ({"batch": 2, "depth": 8}, {"batch": 3, "depth": 12}),
    ),
    "resnet18": Architecture(convolutional.ResNet, *_images(3, 32, 48)),
    "densenet": Architecture(convolutional.DenseNet, *_images(1, 16, 24)),
    "efficientnet": Architecture(convolutional.EfficientNet, *_images(3, 16, 22)),
    "vit": Architecture(sequential.ViT, {"x": ("batch", 1, 16, 16)}, BATCH),
    "swin": Architecture(sequential.Swin, {"x": ("batch", 1, 16, 16)}, BATCH),
    "lstm": Architecture(
        sequential.Lstm, {"x": ("batch", "time", 3)}, ({"batch": 2, "time": 6}, {"batch": 3, "time": 9})
    ),
    "captioner": Architecture(
        sequential.CaptionStep,
        {"image": ("batch", 1, 16, 16), "words": ("batch", "time"), "hidden": (1, "batch", 6), "cell": (1, "batch", 6)},
        ({"batch": 2, "time": 3}, {"batch": 3, "time": 7}),
    ),
    "dcgan": Architecture(convolutional.DcganGenerator, {"x": ("batch", 8)}, BATCH),
    "deeplab": Architecture(convolutional.DeepLab, *_images(3, 24, 32)),
}
EXPORTERS = {"dynamo": True, "torchscript": False}


def _feed(architecture: Architecture, binding: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feed = {}
    for name, dims in architecture.inputs.items():
        shape = [binding[d] if isinstance(d, str) else d for d in dims]
        if name == "words":
            feed[name] = rng.integers(0, 11, shape)
        else:
            feed[name] = rng.standard_normal(shape).astype(np.float32)
    return feed


def _module(architecture: Architecture) -> Any:
    torch.manual_seed(7)
    module = architecture.make()
    for layer in module.modules():
        # Fresh statistics are 0 and 1: a compiler that forgot them would go unseen.
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return module.eval()


def export(name: str, dynamo: bool) -> bytes:
    """The model as torch.onnx writes it."""
    architecture = ARCHITECTURES[name]
    module = _module(architecture)
    feed = _feed(architecture, architecture.bindings[0], 1)
    arguments = tuple(torch.from_numpy(array) for array in feed.values())
    axes = {n: {i: d for i, d in enumerate(s) if isinstance(d, str)} for n, s in architecture.inputs.items()}
    options: dict[str, Any] = {"input_names": list(feed)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if not dynamo:
            stream = io.BytesIO()
            torch.onnx.export(module, arguments, stream, dynamo=False, dynamic_axes=axes, **options)
            return stream.getvalue()
        shapes = tuple(dict.fromkeys(a, torch.export.Dim.DYNAMIC) for a in axes.values())
        program = torch.onnx.export(module, arguments, dynamo=True, dynamic_shapes=shapes, verbose=False, **options)
        return program.model_proto.SerializeToString()


PARAMETERS = [
    pytest.param((n, e), id=f"{n}-{e}", marks=[pytest.mark.slow] if dynamo else [])
    for e, dynamo in EXPORTERS.items()
    for n in ARCHITECTURES
]


@pytest.fixture(scope="module", params=PARAMETERS)
def exported(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    name, exporter = request.param
    # Each in a process of its own: an exporter that has seen an LSTM takes the sizes of the next one as fixed.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return name, pool.apply_async(export, (name, EXPORTERS[exporter])).get(timeout=300)


def _check(name: str, data: bytes, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]) -> None:
    architecture = ARCHITECTURES[name]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    judge = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    for seed, binding in enumerate(architecture.bindings):
        feed = _feed(architecture, binding, seed)
        wanted = judge.run(None, feed)
        found = run(feed)
        assert len(found) == len(wanted)
        for f, w in zip(found, wanted):
            assert f.shape == w.shape
            assert f.dtype == w.dtype
            scale = np.abs(w).max()
            assert scale > 1e-3  # a model whose results are all about zero would agree with anything
            assert np.abs(f.astype(np.float64) - w).max() <= TOLERANCE * scale


def test_compiled(exported: tuple[str, bytes]) -> None:
    name, data = exported
    session = dhc.compile(dhc.load_onnx(data)).session()
    _check(name, data, lambda feed: list(session.run(feed).values()))


def test_interpreted(exported: tuple[str, bytes]) -> None:
    name, data = exported
    graph = dhc.load_onnx(data)
    _check(name, data, lambda feed: list(graph.evaluate(**feed)))
