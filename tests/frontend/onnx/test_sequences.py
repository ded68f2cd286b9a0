"""Models with sequences, optionals and strings against ONNX's own evaluator; those that also compile."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, parser
from onnx.reference import ReferenceEvaluator

from dhc.errors import UnsupportedError
from dhc.frontend.onnx.backend import DhcBackend

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def model(text: str):
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 20]> {text}')


def same(found, wanted) -> None:
    if isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted)
        for f, w in zip(found, wanted):
            same(f, w)
        return
    assert np.asarray(found).dtype == np.asarray(wanted).dtype
    np.testing.assert_array_equal(found, wanted)


THROUGH = {
    "erase_and_concat": """g (float[3,4] x) => (float[n,m] y) {
        one = Constant <value_int: int = 1> ()
        s = SplitToSequence <axis: int = 0> (x)
        t = SequenceErase (s, one)
        u = SequenceInsert (t, x, one)
        y = ConcatFromSequence <axis: int = 0> (u)
    }""",
    "stack": """g (float[3,4] x) => (float[n,m,k] y, int64 count) {
        s = SplitToSequence <axis: int = 1, keepdims: int = 0> (x)
        y = ConcatFromSequence <axis: int = -1, new_axis: int = 1> (s)
        count = SequenceLength (s)
    }""",
    "map_with_outer_value": """g (float[3,4] x, float[1,4] outer) => (float[n] last) {
        s = SplitToSequence <axis: int = 0> (x)
        t = SequenceMap (s, outer) <body = b (float[1,4] e, float[1,4] o) => (float[n] r) {
            sum = Add (e, o)
            more = Mul (sum, outer)
            r = ReduceSum <keepdims: int = 0> (more)
        }>
        minus = Constant <value_int: int = -1> ()
        last = SequenceAt (t, minus)
    }""",
    "optional": """g (float[3,4] x) => (float[3,4] y, bool has) {
        o = Optional (x)
        has = OptionalHasElement (o)
        y = OptionalGetElement (o)
    }""",
    "empty": """g (float[3,4] x) => (float[n,m] y) {
        e = SequenceEmpty ()
        s = SequenceInsert (e, x)
        zero = Constant <value_int: int = 0> ()
        y = SequenceAt (s, zero)
    }""",
}
"""Sequences made and used inside of the graph: they compile."""


@pytest.mark.parametrize("device", ["REFERENCE", "CPU"])
@pytest.mark.parametrize("name", list(THROUGH))
def test_sequences_inside_of_a_graph(name, device):
    proto = model(THROUGH[name])
    inputs = {"x": X, "outer": np.array([[1, 2, 3, 4]], np.float32)}
    inputs = {v.name: inputs[v.name] for v in proto.graph.input}
    if name == "map_with_outer_value":
        wanted = [np.float32(((X[2] + inputs["outer"]) * inputs["outer"]).sum())]
    elif name == "optional":
        wanted = [X, np.array(True)]  # ONNX's evaluator wraps optionals in lists
    else:
        wanted = ReferenceEvaluator(proto).run(None, inputs)
    for f, w in zip(DhcBackend.run_model(proto, inputs, device), wanted, strict=True):
        same(f, w)


def test_sequences_that_are_inputs_and_loops_that_collect():
    proto = model("""g (seq(float[k]) s, int64 n, float[1] outer) =>
            (seq(float[k]) t, float[m] joined, seq(float[k]) u) {
        e = SequenceEmpty ()
        true = Constant <value_int: int = 1> ()
        cond = Cast <to: int = 9> (true)
        t = Loop (n, cond, e) <body = b (int64 i, bool c, seq(float[k]) before) => (bool c2, seq(float[k]) after) {
            c2 = Identity (c)
            part = SequenceAt (s, i)
            twice = Add (part, part)
            after = SequenceInsert (before, twice)
        }>
        joined = ConcatFromSequence <axis: int = 0> (s)
        u = SequenceMap (s) <body = m (float[k] e1) => (float[k] r1) { r1 = Mul (e1, outer) }>
    }""")
    parts = [np.array(p, np.float32) for p in ([1, 2], [3], [4, 5, 6])]
    inputs = {"s": parts, "n": np.array(2), "outer": np.array([10], np.float32)}
    t, joined, u = DhcBackend.run_model(proto, inputs, "REFERENCE")
    same(t, [2 * parts[0], 2 * parts[1]])
    same(joined, np.concatenate(parts))
    same(u, [10 * p for p in parts])
    with pytest.raises(UnsupportedError, match="interpreter only"):
        DhcBackend.run_model(proto, inputs, "CPU")


def test_ngrams_of_words():
    node = helper.make_node(
        "TfIdfVectorizer", ["x"], ["y"], mode="TFIDF", min_gram_length=1, max_gram_length=2, max_skip_count=0,
        ngram_counts=[0, 2], ngram_indexes=[0, 2, 1], pool_strings=["a", "b", "a", "b"], weights=[1.0, 2.0, 5.0],
    )  # fmt: skip
    infos = [helper.make_tensor_value_info("x", TensorProto.STRING, [None])]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    x = np.array(["a", "b", "c", "a", "b", "b"], object)
    (found,) = DhcBackend.run_model(proto, [x], "REFERENCE")
    np.testing.assert_array_equal(found, np.array([2, 10, 6], np.float32))


@pytest.mark.parametrize(("source", "target", "wanted"), [("float", 8, ["1.5", "-2.0"]), ("int64", 8, ["1", "-2"])])
def test_casts_to_text_and_back(source, target, wanted):
    code = {"float": 1, "int64": 7}[source]
    proto = model(f"g ({source}[2] x) => (string[2] t, {source}[2] y) {{ t = Cast <to: int = {target}> (x)"
                  f" y = Cast <to: int = {code}> (t) }}")  # fmt: skip
    x = np.array([1.5, -2], np.float32) if source == "float" else np.array([1, -2])
    text, back = DhcBackend.run_model(proto, [x], "REFERENCE")
    assert text.tolist() == wanted
    same(back, x)


@pytest.mark.parametrize("device", ["REFERENCE", "CPU"])
def test_labels_between_numbers(device):
    node = helper.make_node(
        "LabelEncoder", ["x"], ["y"], domain="ai.onnx.ml", keys_floats=[1.0, float("nan"), 1.0],
        values_int64s=[10, 20, 30], default_int64=-5,
    )  # fmt: skip
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", TensorProto.INT64, [2, 2])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)])
    x = np.array([[1, np.nan], [0, -1]], np.float32)
    (found,) = DhcBackend.run_model(proto, [x], device)
    same(found, np.array([[30, 20], [-5, -5]]))
