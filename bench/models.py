"""Whole models, dhc beside onnxruntime, taking turns on the same input; a wrong answer ends the measurement.

The models are those of the shared data (``DHC_SHARED_DATA``, else ``../shared/data``) and the light ones of the onnx
package with random weights. ``DHC_BENCH_MODELS`` names those to measure, separated by commas; default: all.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.interleaved import interleaved, median
from bench.light_models import with_random_weights

TITLE = "Whole models, dhc beside onnxruntime (median ms of a run, one and two threads; ratio above 1: dhc is faster)"

_THREADS = (1, 2)
_BUDGET_MS = 1200.0  # for the rounds of one model and one number of threads
_LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip
# Sizes for inputs that the model leaves open, and for the networks that run on volumes of any size.
_SHAPES: dict[str, tuple[int, ...]] = {
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


def run() -> list[dict[str, Any]]:
    """One row for each model and number of threads."""
    chosen = set(filter(None, os.environ.get("DHC_BENCH_MODELS", "").split(",")))
    rows: list[dict[str, Any]] = []
    for name, load, shape in _models():
        if not chosen or name in chosen:
            rows.extend(_measure(name, load(), shape))
            print(f"    {name}: " + ", ".join(f"{row['ratio']:.2f}" for row in rows[-len(_THREADS) :]), flush=True)
    wrong = [f"{row['model']}: {row['difference']:.3g}" for row in rows if row["difference"] > _allowed(row["model"])]
    if wrong:
        raise SystemExit("answers differ, as a share of the largest value: " + "; ".join(wrong))
    if not rows:
        raise SystemExit("no model of these names, and no shared data at ../shared/data or DHC_SHARED_DATA")
    return rows


def _models() -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DHC_SHARED_DATA", default)) / "models"
    for name, shape in sorted(_SHAPES.items()):
        path = folder / f"{name}.onnx"
        if path.is_file():
            yield name, path.read_bytes, shape
    for name in _LIGHT:
        yield f"light_{name}", partial(with_random_weights, name), (1, 3, 224, 224)


def _measure(name: str, model: bytes, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    import onnxruntime as ort

    import dhc_runtime

    import dhc

    x = _input(name, shape)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.dhc"
        start = time.perf_counter()
        dhc.compile(dhc.load_onnx(model)).save(path)
        compiled = time.perf_counter() - start
        for threads in _THREADS:
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            theirs = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            with dhc_runtime.load(path, threads=threads) as ours:
                feeds = {ours.inputs[0].name: x}
                difference = _difference(list(ours.run(feeds).values()), theirs.run(None, feeds))
                candidates = {"dhc": partial(ours.run, feeds), "onnxruntime": partial(theirs.run, None, feeds)}
                once = sum(median(times) for times in interleaved(candidates, rounds=1, warm_up=1).values())
                rounds = int(min(max(_BUDGET_MS / once, 3), 200))
                times = interleaved(candidates, rounds, warm_up=1)
            mine, other = median(times["dhc"]), median(times["onnxruntime"])
            rows.append(
                {
                    "model": name,
                    "input": "x".join(map(str, shape)),
                    "threads": threads,
                    "dhc ms": mine,
                    "onnxruntime ms": other,
                    "ratio": other / mine,
                    "difference": difference,
                    "import and compile s": compiled,
                }
            )
    return rows


def _allowed(name: str) -> float:
    """onnxruntime fuses int8 operators into kernels that round differently."""
    return 0.1 if "int8" in name else 1e-4


def _input(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values in the range that the model takes."""
    x = np.random.default_rng(5).random(shape, dtype=np.float32)
    if name == "brain_unet3d_small":  # noise is no brain: every probability would vanish
        squares = [((np.arange(size, dtype=np.float32) - size / 2) / (size / 4)) ** 2 for size in shape[2:]]
        distance = squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :]
        x = np.exp(-distance) * (0.9 + 0.1 * x)
    elif name.startswith("light"):  # images are centred on zero
        x = 4 * x - 2
    elif name.startswith(("mnist", "histology")):
        x *= 255
    return np.ascontiguousarray(x, np.float32)


def _difference(actual: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Largest difference as a share of the largest value, over all outputs."""
    shares = []
    for a, w in zip(actual, wanted, strict=True):
        if a.shape != w.shape or a.dtype != w.dtype:
            return float("inf")
        largest = float(np.abs(w).max())
        shares.append(float(np.abs(a.astype(np.float64) - w).max()) / largest if largest else float("inf"))
    return max(shares)
