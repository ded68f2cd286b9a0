"""The demo: real handwritten digits through a network that dhc compiles, beside onnxruntime where it is installed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_ROUNDS = 200
_THREADS = 1

Report = Callable[[str], None]
Engine = Callable[[np.ndarray], np.ndarray]


def run_demo(out_dir: Path, report: Report = print) -> dict[str, Any]:
    """Fits, compiles, classifies and measures; everything written goes to ``out_dir``.

    Args:
        out_dir: folder for ``digits.onnx``, ``digits.dhc`` and ``digits.png``; made when absent.
        report: gets one line of text for each stage as it happens.

    Returns:
        The figures: counts, ``accuracy``, ``agreement`` and ``max_difference`` against onnxruntime (None without it),
        ``ms`` with the medians of interleaved runs for each engine and batch size, ``seconds`` by stage, ``files``.

    Raises:
        MissingExtraError: scikit-learn or pillow is not installed.
        DhcError: what compiling or running reports.
    """
    from dhc.cli.digits import fit, load_data, write_onnx
    from dhc.cli.montage import write_montage

    started = time.perf_counter()
    seconds: dict[str, float] = {}
    out_dir.mkdir(parents=True, exist_ok=True)
    onnx_path, artifact_path, png_path = (out_dir / f"digits.{kind}" for kind in ("onnx", "dhc", "png"))

    data = _timed(seconds, "data", load_data)
    total = len(data.train_labels) + len(data.test_labels)
    report(f"data         {total} handwritten digits of scikit-learn; {len(data.test_labels)} held out")
    network = _timed(seconds, "fit", lambda: fit(data))
    weights = network.filters.size + sum(w.size + b.size for w, b in network.layers)
    report(f"fit          {weights} weights in {seconds['fit']:.1f} s (scikit-learn)")
    _timed(seconds, "onnx", lambda: write_onnx(network, onnx_path))
    _timed(seconds, "compile", lambda: _compile(onnx_path, artifact_path))
    size = artifact_path.stat().st_size
    report(
        f"compile      {onnx_path.name} -> {artifact_path.name}, {size / 1024:.0f} KiB in {seconds['compile']:.1f} s"
    )

    engines: dict[str, Engine] = {"dhc": _timed(seconds, "load", lambda: _dhc_engine(artifact_path))}
    other = _onnxruntime_engine(onnx_path)
    if other is not None:
        engines["onnxruntime"] = other
    outputs = {name: engine(data.test_images) for name, engine in engines.items()}
    predictions = outputs["dhc"].argmax(1)
    accuracy = {name: float((result.argmax(1) == data.test_labels).mean()) for name, result in outputs.items()}
    result: dict[str, Any] = {"images": total, "held_out": len(data.test_labels), "accuracy": accuracy}
    result.update(_compare(outputs))
    result["threads"] = _THREADS
    result["ms"] = _timed(seconds, "measure", lambda: _measure(engines, data.test_images))
    _report_engines(result, report)

    side = int(data.test_images.shape[1] ** 0.5)
    images = data.test_images.reshape(-1, side, side)
    _timed(seconds, "montage", lambda: write_montage(images, data.test_labels, predictions, png_path))
    seconds["total"] = time.perf_counter() - started
    result["seconds"] = seconds
    result["files"] = {path.suffix[1:]: str(path) for path in (onnx_path, artifact_path, png_path)}
    report(
        f"picture      {png_path} ({int((predictions != data.test_labels).sum())} wrong of {len(predictions)}, in red)"
    )
    report(f"total        {seconds['total']:.1f} s")
    return result


def _timed(seconds: dict[str, float], stage: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    value = work()
    seconds[stage] = time.perf_counter() - start
    return value


def _compile(model: Path, artifact: Path) -> None:
    import dhc

    graph = dhc.load_onnx(model)
    dhc.compile(graph, targets=["cpu"]).save(artifact)


def _dhc_engine(artifact: Path) -> Engine:
    import dhc_runtime

    session = dhc_runtime.load(artifact, threads=_THREADS)
    return lambda images: session.run({"image": images})["probabilities"]


def _onnxruntime_engine(model: Path) -> Engine | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    options.inter_op_num_threads = _THREADS
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"image": images})[0]


def _compare(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far dhc and onnxruntime are apart: largest difference of a probability, share of equal classes."""
    other = outputs.get("onnxruntime")
    if other is None:
        return {"max_difference": None, "agreement": None}
    mine = outputs["dhc"]
    agreement = float((mine.argmax(1) == other.argmax(1)).mean())
    return {"max_difference": float(np.abs(mine - other).max()), "agreement": agreement}


def _measure(engines: dict[str, Engine], images: np.ndarray) -> dict[str, dict[str, float]]:
    """Medians in milliseconds by batch size and engine; the engines take turns, so that both see the same machine."""
    medians: dict[str, dict[str, float]] = {}
    for batch in (1, len(images)):
        part = np.ascontiguousarray(images[:batch])
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(_ROUNDS):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine(part)
                times[name].append((time.perf_counter() - start) * 1e3)
        medians[str(batch)] = {name: statistics.median(values) for name, values in times.items()}
    return medians


def _report_engines(result: dict[str, Any], report: Report) -> None:
    for name, accuracy in result["accuracy"].items():
        times = ", ".join(f"{ms[name]:.3f} ms for {batch}" for batch, ms in result["ms"].items())
        plural = "" if result["threads"] == 1 else "s"
        report(
            f"{name:<13}{accuracy:.2%} right; {times} image(s), median of {_ROUNDS}, {result['threads']} thread{plural}"
        )
    if result["max_difference"] is None:
        report("onnxruntime  not installed, so nothing to compare with; it comes with: pip install 'dhc[bench]'")
        return
    difference, agreement = result["max_difference"], result["agreement"]
    report(f"difference   at most {difference:.1e} in a probability; the same digit for {agreement:.2%} of the images")
