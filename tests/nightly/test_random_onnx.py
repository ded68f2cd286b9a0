"""Random valid ONNX models, compiled, equal onnxruntime, or ONNX's reference evaluator where it has no kernel."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import dhc
from tests.nightly.random_onnx import BATCH, RandomModel, build
from tests.nightly.random_onnx_table import OPERATORS

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

FAILED_ONCE = [int(line.split()[0]) for line in
               Path(__file__).with_name("random_onnx_seeds.txt").read_text(encoding="utf-8").splitlines()
               if line.strip()]  # fmt: skip
"""Seeds that failed once, each with what was wrong: the list may only grow."""
NIGHTLY, BLOCK = 1000, 50
RTOL = 2e-3
"""Of the largest element: chains of a dozen operators magnify rounding."""


def judged(made: RandomModel) -> tuple[list[np.ndarray], str]:
    """What is right, and who says so."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(made.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, made.inputs), "onnxruntime"
    except Exception:  # no kernel for a type, or an opset that it does not know
        return made.expected, "the reference evaluator"


def agree(found: list[np.ndarray], wanted: list[np.ndarray]) -> str:
    for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
        if f.dtype != w.dtype or f.shape != w.shape:
            return f"output {i} is {f.dtype}{f.shape}, not {w.dtype}{w.shape}"
        scale = max(1.0, float(np.abs(w.astype(np.float64)).max())) if w.size else 1.0
        error = np.abs(f.astype(np.float64) - w.astype(np.float64)).max() if w.size else 0.0
        if not error <= (RTOL * scale if w.dtype.kind == "f" else 0):
            return f"output {i} differs by {error:.3g} of {scale:.3g}"
    return ""


def check(seed: int) -> str:
    """Why the model of a seed fails; empty when it does not."""
    made = build(seed)
    onnx.checker.check_model(made.proto, full_check=True)
    wanted, judge = judged(made)
    try:
        found = list(dhc.compile(dhc.load_onnx(made.proto.SerializeToString())).session().run(made.inputs).values())
    except dhc.errors.DhcError as error:
        return f"{type(error).__name__}: {error}"
    trouble = agree(found, wanted)
    if trouble and judge == "onnxruntime" and not agree(found, made.expected):
        return ""  # two judges who disagree: one of them is met
    return trouble and f"{trouble} ({judge}; opset {made.proto.opset_import[0].version}, {', '.join(made.operators)})"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_models(first: int) -> None:
    assert {seed: why for seed in range(first, first + 20) if (why := check(seed))} == {}


@pytest.mark.slow
def test_models_that_failed_once() -> None:
    assert {seed: why for seed in FAILED_ONCE if (why := check(seed))} == {}


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, NIGHTLY, BLOCK))
def test_many_random_models(first: int) -> None:
    assert {seed: why for seed in range(first, first + BLOCK) if (why := check(seed))} == {}


def test_models_differ_and_cover_the_table() -> None:
    models = [build(seed) for seed in range(150)]
    assert all(3 <= len(m.proto.graph.node) <= 12 for m in models)
    assert len({m.proto.SerializeToString() for m in models}) == len(models)
    seen = Counter(op for m in models for op in m.operators)
    assert len(seen) >= 60 <= len(OPERATORS)
    assert {m.proto.opset_import[0].version for m in models} == set(range(13, 24))
    free = [m for m in models if any(d.dim_param for v in m.proto.graph.input for d in v.type.tensor_type.shape.dim)]
    assert len(free) > 20
    assert all(m.inputs["x0"].shape[0] == BATCH for m in free)


def test_a_wrong_result_is_noticed() -> None:
    assert agree([np.zeros(2, np.float32)], [np.ones(2, np.float32)])
    assert agree([np.zeros(2, np.float64)], [np.zeros(2, np.float32)])
    assert agree([np.full(2, np.nan, np.float32)], [np.zeros(2, np.float32)])
    assert agree([np.zeros(2, np.int64)], [np.zeros(2, np.int64)]) == ""
