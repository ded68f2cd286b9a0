"""Contraction kernels beside onnxruntime on single layers: GFLOP/s and share of the measured FMA limit.

dhc's kernels run from a step list inside ``dhc_run``, several repetitions a call; onnxruntime runs a model of one node
through its Python API, which adds about ten microseconds a run. ``DHC_BENCH_TARGET`` names a target (default: host).
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.interleaved import interleaved, median
from dhc.backends.cpu import executor_ir
from dhc.backends.cpu import target as targets
from dhc.backends.cpu.contract import registry
from dhc.backends.cpu.contract.spec import ConvSpec, ConvTransposeSpec, MatmulSpec, Spec
from dhc.backends.cpu.limits import peak_gflops
from dhc.backends.cpu.llvm.loader import LoadedObject

TITLE = "single contraction layers, one and two threads, against onnxruntime"
ROUNDS = 12


@dataclass(frozen=True)
class Layer:
    """A layer to measure: its spec, the input's and the output's sizes."""

    name: str
    spec: Spec
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]


def _conv(
    name: str, ins: int, outs: int, size: tuple[int, ...], k: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> Layer:
    rank = len(size)
    pad = (k - 1) * dilation // 2
    out = tuple((n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n in size)
    spec = ConvSpec(ins, outs, (k,) * rank, (stride,) * rank, (dilation,) * rank, (pad,) * rank, groups, bias=True)
    return Layer(name, spec, size, out)


LAYERS = (
    _conv("3x3 64-64 @128", 64, 64, (128, 128), 3),
    _conv("3x3 128-128 @64", 128, 128, (64, 64), 3),
    _conv("3x3 512-512 @14", 512, 512, (14, 14), 3),
    _conv("3x3 512-512 @7", 512, 512, (7, 7), 3),
    _conv("3x3 s2 128-128 @56", 128, 128, (56, 56), 3, stride=2),
    _conv("7x7 s2 3-64 @224", 3, 64, (224, 224), 7, stride=2),
    _conv("1x1 256-256 @28", 256, 256, (28, 28), 1),
    _conv("1x1 64-256 @56", 64, 256, (56, 56), 1),
    _conv("depthwise 3x3 96 @56", 96, 96, (56, 56), 3, groups=96),
    _conv("depthwise 3x3 s2 96 @112", 96, 96, (112, 112), 3, stride=2, groups=96),
    _conv("3x3x3 32-32 @32", 32, 32, (32, 32, 32), 3),
    _conv("3x3x3 d4 5-5 @64", 5, 5, (64, 64, 64), 3, dilation=4),
    Layer("transposed 2x2 s2 128-64 @64", ConvTransposeSpec(128, 64, (2, 2), (2, 2), bias=True), (64, 64), (128, 128)),
    Layer(
        "transposed 4x4 s2 64-64 @32",
        ConvTransposeSpec(64, 64, (4, 4), (2, 2), pad_begin=(1, 1), bias=True),
        (32, 32),
        (64, 64),
    ),
    Layer("matmul 1024x1024x1024", MatmulSpec(), (1024, 1024, 1024), ()),
    Layer("matmul 197x384x1536, constant b", MatmulSpec(packed_b=True), (197, 384, 1536), ()),
    Layer("matmul 1x2048x1000, constant b", MatmulSpec(packed_b=True), (1, 2048, 1000), ()),
)


class Step(ctypes.Structure):
    """One step of ``dhc_run``."""

    _fields_ = [
        ("fn", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("flags", ctypes.c_int64),
    ]


def aligned(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Zeros that start at a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


class StepList:
    """A kernel repeated in a step list, run by threads that enter native code together.

    Args:
        loaded: object with the kernel and ``dhc_run``.
        symbol: the kernel.
        buffers: addresses.
        params: sizes.
    """

    def __init__(self, loaded: LoadedObject, symbol: str, buffers: list[int], params: list[int]) -> None:
        self._bound = loaded.kernel(symbol).bind(buffers, params)
        self._loaded, self._symbol = loaded, symbol
        self._run = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
        )(loaded.address(executor_ir.SYMBOL))

    def seconds(self, repeats: int, nthreads: int) -> float:
        """Time of one repetition."""
        fn, (buffers, params) = self._loaded.address(self._symbol), self._bound
        steps = (Step * repeats)(*[Step(fn, ctypes.addressof(buffers), ctypes.addressof(params), 1)] * repeats)
        sync = (ctypes.c_int64 * (executor_ir.sync_bytes(nthreads) // 8))()
        sync[executor_ir.SYNC_SPIN // 8] = 2_000

        def enter(tid: int) -> None:
            if self._run(ctypes.addressof(steps), repeats, tid, nthreads, ctypes.addressof(sync)):
                raise RuntimeError("kernel failed")

        threads = [threading.Thread(target=enter, args=(tid,)) for tid in range(1, nthreads)]
        for thread in threads:
            thread.start()
        start = time.perf_counter()
        enter(0)
        taken = time.perf_counter() - start
        for thread in threads:
            thread.join()
        return taken / repeats


def prepare(
    layer: Layer, described: targets.CpuTarget, nthreads: int
) -> tuple[StepList, np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]], float]:
    """Compiles a layer's kernel; returns its step list, output, plain operands and floating-point operations."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        values = aligned(shape)
        values[...] = rng.standard_normal(shape)
        return values

    if isinstance(layer.spec, MatmulSpec):
        m, k, n = layer.in_size
        spec: Spec = layer.spec
        plain = {"a": normal(m, k), "b": normal(k, n)}
        held = dict(plain)
        constant, out, params = "b", aligned((m, n)), [1, 1, 1, m, n, k, 0, 0, 0, 0, 0, 0]
        flops = 2.0 * m * n * k
    else:
        spec = registry.normalize(layer.spec, described, layer.in_size, layer.out_size)
        assert not isinstance(spec, MatmulSpec)
        ins, outs, groups = spec.in_channels, spec.out_channels, spec.groups
        pair = (ins, outs // groups) if isinstance(spec, ConvTransposeSpec) else (outs, ins // groups)
        plain = {"input": normal(1, ins, *layer.in_size), "weight": normal(*pair, *spec.kernel), "bias": normal(outs)}
        held = dict(plain)
        ones = [1] * (3 - len(spec.kernel))
        constant, out = "weight", aligned((1, outs, *layer.out_size))
        params = [1, *ones, *layer.in_size, *ones, *layer.out_size]
        over = layer.in_size if isinstance(spec, ConvTransposeSpec) else layer.out_size
        flops = 2.0 * ins * outs / groups * float(np.prod(spec.kernel)) * float(np.prod(over))
    packed = registry.pack_weights(spec, described, plain[constant])
    held[constant] = aligned(packed.shape)
    held[constant][...] = packed
    code = registry.emit(spec, described)
    held |= {"out": out, "scratch": aligned((code.scratch_per_thread * nthreads,), np.uint8)}
    loaded = LoadedObject(targets.compile_ir([code.ir, executor_ir.executor_ir(described)], described))
    steps = StepList(loaded, code.name, [held[name].ctypes.data for name in code.buffers], [*params, *code.constants])
    steps.held = held  # type: ignore[attr-defined]  # the addresses stay valid as long as the list lives
    return steps, out, plain, flops


def onnxruntime_candidate(
    layer: Layer, plain: dict[str, np.ndarray[Any, Any]], nthreads: int
) -> Callable[[], np.ndarray[Any, Any]] | None:
    """The same layer as a model of one node, or ``None`` without onnxruntime."""
    try:
        import onnx
        import onnxruntime
        from onnx import helper
    except ImportError:
        return None
    spec = layer.spec
    if isinstance(spec, MatmulSpec):
        node = helper.make_node("MatMul", ["a", "b"], ["y"])
        constants, feed = (["b"] if spec.packed_b else []), ["a"] if spec.packed_b else ["a", "b"]
    else:
        pads = [*spec.pad_begin, *spec.pad_begin]
        node = helper.make_node(
            "ConvTranspose" if isinstance(spec, ConvTransposeSpec) else "Conv",
            ["input", "weight", "bias"],
            ["y"],
            strides=spec.stride,
            dilations=spec.dilation,
            pads=pads,
            group=spec.groups,
        )
        constants, feed = ["weight", "bias"], ["input"]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, plain[name].shape) for name in feed],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(plain[name], name) for name in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = nthreads
    # Its threads otherwise go on spinning for tens of milliseconds after a run and hold the core that dhc is to use.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {name: plain[name] for name in feed}
    return lambda: session.run(None, inputs)[0]


def run() -> list[dict[str, object]]:
    """Measures every layer with one and two threads."""
    cpu = os.environ.get("DHC_BENCH_TARGET", "host")
    described, limit = targets.target(cpu), peak_gflops(1, cpu)
    rows: list[dict[str, object]] = []
    for layer in LAYERS:
        row: dict[str, object] = {"layer": layer.name, "limit": limit}
        for nthreads in (1, 2):
            steps, out, plain, flops = prepare(layer, described, nthreads)
            repeats = max(1, int(2e-3 / steps.seconds(1, 1)))
            own: list[float] = []
            peer = onnxruntime_candidate(layer, plain, nthreads)

            def ours(
                steps: StepList = steps, own: list[float] = own, repeats: int = repeats, nthreads: int = nthreads
            ) -> None:
                own.append(steps.seconds(repeats, nthreads))

            candidates: dict[str, Callable[[], object]] = {"dhc": ours}
            if peer is not None:
                expected = peer()
                difference = float(np.abs(out - expected).max() / np.abs(expected).max())
                if difference > 1e-4:
                    raise RuntimeError(f"{layer.name}: differs from onnxruntime by {difference:.1e}")
                candidates["ort"] = peer
            times = interleaved(candidates, ROUNDS)
            rate = flops / median(own[-ROUNDS:]) / 1e9
            row |= {f"dhc_{nthreads}": rate, f"share_{nthreads}": rate / (limit * nthreads)}
            if peer is not None:
                theirs = flops / (median(times["ort"]) * 1e-3) / 1e9
                row |= {f"ort_{nthreads}": theirs, f"speedup_{nthreads}": rate / theirs}
        rows.append(row)
    return rows
