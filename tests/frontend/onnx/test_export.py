"""Export: what was imported goes back to ONNX and gives the same results in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings

from dhc.errors import UnsupportedError, UsageError
from dhc.frontend.onnx import load_onnx, save_onnx, to_onnx
from dhc.frontend.onnx.backend import DhcBackend
from dhc.frontend.onnx.conformance import data_sets, difference
from dhc.frontend.onnx.export.registry import find_exporter
from dhc.ir import Builder, Graph
from dhc.ir.kinds import Composite
from tests.frontend.onnx.node_cases import node_cases, passing_names
from tests.frontend.onnx.real_models import SHAPES, assert_close, model_bytes, reference, sample
from tests.models import light_models
from tests.support.onnxruntime_session import onnxruntime_session
from tests.support.random_graphs import RandomGraph, random_graphs


def run(model: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime_session(model.SerializeToString(), optimize=False, threads=1)
    return [np.asarray(a) for a in session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})]


def checked(graph: Graph) -> Any:
    """The exported model, which ONNX's own checker and strict shape inference accept."""
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    return model


# ---- whole models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_real_model_round_trip(shared_data: Path, name: str) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    data, x = model_bytes(path), sample(path)
    graph = load_onnx(data)
    model = checked(graph)
    assert_close(run(model, {graph.inputs[0].name: x}), reference(data, x), "int8" in name)
    original = onnx.load_from_string(data)
    assert [o.name for o in model.graph.output] == [o.name for o in original.graph.output]


@pytest.mark.slow
@pytest.mark.parametrize("name", light_models.NAMES)
def test_light_model_round_trip(name: str) -> None:
    path = light_models.path_of(name)
    graph = load_onnx(path)
    rng = np.random.default_rng(3)
    # All weights of a layer are equal: with inputs of size 1 the logits are so large that rounding decides the class.
    inputs = {v.name: rng.random(v.shape, dtype=np.float32) * np.float32(1e-3) for v in graph.inputs}
    wanted = run(onnx.load(path), inputs)
    for a, w in zip(run(checked(graph), inputs), wanted, strict=True):
        np.testing.assert_allclose(a, w, rtol=1e-4, atol=1e-4 * float(np.abs(w).max()))


def test_all_light_models_are_there() -> None:
    found = sorted(p.stem for p in light_models.folder().glob("*.onnx"))
    assert found == sorted(light_models.NAMES)
    assert len(found) == 9


# ---- node cases ------------------------------------------------------------------------------------------------------

# Cases that have no form in ONNX's operators, with the reason.
REFUSED = {
    "test_identity_opt": "optionals",
    "test_identity_sequence": "sequences",
    "test_if_opt": "optionals",
    "test_if_seq": "sequences",
    "test_loop13_seq": "sequences",
    "test_optional_get_element_sequence": "sequences",
    "test_loop16_seq_none": "sequences",
    "test_resize_downsample_sizes_nearest_not_smaller": "scales and sizes that ONNX cannot both state",
    "test_reversesequence_bfloat16": "bf16",
    "test_unique_bfloat16_sorted_without_axis": "bf16",
}
# Element types that the opset of the export lacks.
NEWER = ("FLOAT4E2M1", "float4e2m1", "FLOAT8E8M0", "INT2", "int2")
# Types that onnxruntime's Python API does not take or give, though the export has them.
SMALL = ("FLOAT8", "e4m3", "e5m2")
# Types that onnxruntime's Python API does not take or give.
FOREIGN = {"bfloat16", "BFLOAT16", "INT4", "UINT4", "int4", "uint4"}


@pytest.mark.parametrize("name", [n for n in passing_names() if not n.endswith(("_expanded", "_expanded_ver18"))])
def test_node_case_round_trip(name: str) -> None:
    case = node_cases().get(name)
    if case is None:
        pytest.skip("the installed onnx package has no such case: install a newer one")
    arrays, _ = next(data_sets(case, case.model))
    prepared = DhcBackend.prepare(case.model, "REFERENCE")
    evaluated = prepared.run(arrays)
    graph = prepared.graph
    unwritten = {
        node.op.name
        for node in graph.walk()
        if find_exporter(node.op.name) is None and not isinstance(node.op.kind, Composite)
    }
    if name in REFUSED or unwritten or any(word in name for word in NEWER):
        with pytest.raises(UnsupportedError) as caught:
            to_onnx(graph)
        named = {problem.split(" at ")[0] for problem in caught.value.problems}
        assert unwritten <= named
        return
    model = checked(graph)
    names = [info.name for info in case.model.graph.input]
    inputs = {n: a for n, a in zip(names, arrays) if n not in prepared.fixed}
    if any(word in name for word in SMALL):
        for actual, wanted in zip(load_onnx(model.SerializeToString()).evaluate(**inputs), evaluated, strict=True):
            assert not difference(actual, np.asarray(wanted), 0, 0)
        return
    try:
        results = run(model, inputs)
    except Exception as error:  # onnxruntime raises classes of its own
        if "NOT_IMPLEMENTED" in str(error):
            pytest.skip("onnxruntime lacks a kernel for this operator or element type; nothing to compare with")
        if any(word in name for word in FOREIGN):
            pytest.skip("onnxruntime's Python API lacks the element type")
        raise
    for actual, wanted in zip(results, evaluated, strict=True):
        assert not difference(actual, np.asarray(wanted), 1e-3, 1e-4)


# ---- random graphs ---------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(random_graphs())
def test_random_graphs_come_back(case: RandomGraph) -> None:
    """Export and import again: the interpreter gives the same."""
    try:
        model = checked(case.graph)
    except UnsupportedError as error:
        assert error.problems  # complex numbers and the like; each is named
        return
    inputs = case.inputs()
    case.check(case.graph.evaluate(**inputs), load_onnx(model.SerializeToString()).evaluate(**inputs))


# ---- sizes, control flow, names --------------------------------------------------------------------------------------


def test_symbolic_sizes_are_computed_by_the_model() -> None:
    graph = Graph("sizes")
    b = Builder(graph)
    x = graph.input("x", "f32", ["N", "M", 6])
    y = graph.input("y", "f32", ["2*K+1"])
    flat = b.reshape(x, shape=("N*M", 2, 3))
    cut = b.slice(flat, starts=("N*M-1", 0, 0), sizes=("(N*M+1)//2", 2, 3), steps=[-2, 1, 1])
    grown = b.broadcast_to(b.constant(1.0, "f32"), shape=("max(N, 3)", "K"))
    graph.output(b.tile(cut, repeats=("M", 1, 1)), grown, b.pad(y, 0.0, low=("N",), high=("M",)), names=("a", "b", "c"))
    model = checked(graph)
    rng = np.random.default_rng(0)
    for n, m, k in ((2, 3, 4), (1, 1, 0), (5, 2, 1)):
        inputs = {"x": rng.random((n, m, 6), np.float32), "y": rng.random(2 * k + 1, np.float32)}
        for actual, wanted in zip(run(model, inputs), graph.evaluate(**inputs), strict=True):
            np.testing.assert_array_equal(actual, wanted)
    assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim] == ["N", "M", ""]


def test_sizes_that_depend_on_data() -> None:
    graph = Graph("found")
    b = Builder(graph)
    x = graph.input("x", "f32", ["N"])
    where = b.nonzero(x)
    (count,) = where.shape[1:]
    rows = b.reshape(where, shape=(count,))
    graph.output(b.gather(x, rows, axis=0), b.broadcast_to(b.reduce_sum(x), shape=(count, 2)), names=("kept", "sums"))
    model = checked(graph)
    for values in ([0, 1, 2, 0, 3], [0, 0], [1]):
        x_array = np.array(values, np.float32)
        for actual, wanted in zip(run(model, {"x": x_array}), graph.evaluate(x_array), strict=True):
            np.testing.assert_array_equal(actual, wanted)


def _sum_until(limit: float) -> Graph:
    """A loop that doubles a vector until its sum passes a limit, stacking what it saw; captures an outer value."""
    graph = Graph("doubling")
    b = Builder(graph)
    x, factor = graph.input("x", "f32", ["N"]), graph.input("factor", "f32", [])
    body = Graph("body", parent=graph)
    inner = Builder(body)
    body.input("i", "i64")
    body.input("go", "bool")
    state, outer = body.input("state", "f32", ["N"]), body.input("outer", "f32")
    grown = inner.mul(state, outer)
    body.output(inner.lt(inner.reduce_sum(grown), inner.constant(limit, "f32")), grown, state)
    trip, go = b.constant(100, "i64"), b.constant(True, "bool")
    last, stack = b.call("loop", trip, go, x, factor, attrs={"carried": 1, "symbols": ("steps",)}, regions=[body])
    graph.output(last, stack, names=("last", "stack"))
    return graph


def test_loop_with_captures() -> None:
    graph = _sum_until(50.0)
    model = checked(graph)
    for start in ([1.0, 2.0], [3.0], [60.0, 1.0, 1.0]):
        inputs = {"x": np.array(start, np.float32), "factor": np.array(2.0, np.float32)}
        wanted = graph.evaluate(**inputs)
        for actual, w in zip(run(model, inputs), wanted, strict=True):
            np.testing.assert_array_equal(actual, w)
        for actual, w in zip(load_onnx(model.SerializeToString()).evaluate(**inputs), wanted, strict=True):
            np.testing.assert_array_equal(actual, w)


def test_branch_with_captures_and_sizes() -> None:
    graph = Graph("choice")
    b = Builder(graph)
    flag, x = graph.input("flag", "bool"), graph.input("x", "f32", ["N", 2])
    regions = []
    for name, axis in (("then", 0), ("else", 1)):
        region = Graph(name, parent=graph)
        value = region.input("v", "f32", ["N", 2])
        inner = Builder(region)
        flat = inner.concat(value, value, axis=axis)
        region.output(inner.reshape(flat, shape=("4*N",)), value)
        regions.append(region)
    graph.output(*b.call("if", flag, x, regions=regions), names=("flat", "same"))
    model = checked(graph)
    for flag_value in (True, False):
        inputs = {"flag": np.array(flag_value), "x": np.arange(6, dtype=np.float32).reshape(3, 2)}
        for actual, wanted in zip(run(model, inputs), graph.evaluate(**inputs), strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_inputs_constants_and_repeated_values_as_outputs() -> None:
    graph = Graph("plain")
    b = Builder(graph)
    x = graph.input("x", "f32", [2])
    y = b.add(x, 1.0)
    graph.output(x, y, y, b.constant(np.array([3.0], np.float32)), names=("copy", "first", "second", "three"))
    model = checked(graph)
    assert [o.name for o in model.graph.output] == ["copy", "first", "second", "three"]
    results = run(model, {"x": np.array([1, 2], np.float32)})
    assert [r.tolist() for r in results] == [[1, 2], [2, 3], [2, 3], [3]]


def test_everything_that_cannot_be_written_is_listed_at_once() -> None:
    graph = Graph("complex")
    b = Builder(graph)
    x = graph.input("x", "f32", [2])
    graph.output(b.real(b.complex(x, x)), b.random_bits(shape=(2,), seed=1))
    with pytest.raises(UnsupportedError) as caught:
        to_onnx(graph)
    assert sorted(p.split(" at ")[0] for p in caught.value.problems) == ["complex", "random_bits", "real"]
    assert "test_export.py" in str(caught.value)


def test_bytes_are_reproducible_and_a_second_trip_changes_nothing(tmp_path: Path) -> None:
    graph = _sum_until(10.0)
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    save_onnx(graph, first)
    save_onnx(graph, second)
    assert first.read_bytes() == second.read_bytes()
    again = to_onnx(load_onnx(first))
    once_more = to_onnx(load_onnx(again.SerializeToString()))
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in once_more.graph.node]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.onnx", "second.onnx"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        save_onnx(_sum_until(1.0), tmp_path / "missing" / "model.onnx")


def test_newer_opset_only_where_needed() -> None:
    graph = Graph("g")
    b = Builder(graph)
    x = graph.input("x", "f32", [3])
    graph.output(b.neg(x))
    assert to_onnx(graph).opset_import[0].version == 21
    graph.output(b.cumprod(x, axis=0))
    assert to_onnx(graph).opset_import[0].version == 26
