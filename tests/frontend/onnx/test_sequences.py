"""Models with sequences, optionals and strings against ONNX's own evaluator; those that also compile."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, parser
from onnx.reference import ReferenceEvaluator

from dhc import load_onnx
from dhc.errors import DhcError, ModelError, ShapeError, UnsupportedError, UsageError
from dhc.frontend.onnx.backend import DhcBackend
from dhc.frontend.onnx.containers import containers_of

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


COLLECTING = """g (seq(float[k]) s, int64 n, float[1] outer) =>
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
}"""


@pytest.mark.parametrize("device", ["REFERENCE", "CPU"])
def test_sequences_that_are_inputs_and_loops_that_collect(device):
    prepared = DhcBackend.prepare(model(COLLECTING), device)
    for sizes, count in (((2, 1, 3), 2), ((4, 4), 1), ((2, 1, 3), 3), ((3,), 0)):
        parts = [np.arange(size, dtype=np.float32) + size for size in sizes]
        t, joined, u = prepared.run([parts, np.array(count), np.array([10], np.float32)])
        same(t, [2 * part for part in parts[:count]])
        same(joined, np.concatenate(parts))
        same(u, [10 * part for part in parts])


def test_an_element_of_an_empty_sequence_is_refused_compiled():
    inputs = [[], np.array(0), np.array([10], np.float32)]
    with pytest.raises(UnsupportedError, match="before the first one is inserted"):
        DhcBackend.run_model(model(COLLECTING), inputs, "CPU")


BRANCHES = """g (bool c, float[2] x, float[3] y) => (seq(float[k]) s, int64 count) {
    s = If (c) <
        then_branch = a () => (seq(float[k]) p) { p = SequenceConstruct (x, y) },
        else_branch = b () => (seq(float[k]) q) { z = Neg (y)  w = Neg (x)  q = SequenceConstruct (%s) }>
    count = SequenceLength (s)
}"""


@pytest.mark.parametrize("device", ["REFERENCE", "CPU"])
@pytest.mark.parametrize("other", ["w, z", "z"])
def test_branches_that_give_sequences(device, other):
    """Alike they run as a branch; of different lengths each is compiled when it is first asked for."""
    prepared = DhcBackend.prepare(model(BRANCHES % other), device)
    x, y = np.array([1, 2], np.float32), np.array([3, 4, 5], np.float32)
    for condition in (True, False, True):
        wanted = [x, y] if condition else [-x, -y] if other == "w, z" else [-y]
        s, count = prepared.run({"c": np.array(condition), "x": x, "y": y})
        same(s, wanted)
        assert int(count) == len(wanted)
    if device == "CPU":
        assert prepared.fixed == (() if other == "w, z" else ("c",))


@pytest.mark.parametrize("device", ["REFERENCE", "CPU"])
@pytest.mark.parametrize(
    ("kind", "made", "wanted"),
    [
        ("optional(float[2])", "Optional <type: type_proto = float[2]> ()", None),
        ("seq(float[2])", "SequenceEmpty ()", []),
    ],
)
def test_branches_that_give_nothing(device, kind, made, wanted):
    proto = model(f"""g (bool c) => ({kind} o) {{
        o = If (c) <
            then_branch = a () => ({kind} p) {{ p = {made} }},
            else_branch = b () => ({kind} q) {{ q = {made} }}>
    }}""")
    assert DhcBackend.run_model(proto, [np.array(True)], device) == (wanted,)


def test_branches_with_different_numbers_of_outputs():
    proto = model("""g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = a () => (float[2] p) { p = Neg (x) },
            else_branch = b () => (float[2] q, float[2] r) { q = Abs (x)  r = Neg (x) }>
    }""")
    with pytest.raises(ModelError, match="number of their outputs"):
        load_onnx(proto.SerializeToString())


OPTIONALS = """g (optional(seq(float[2])) o, optional(float[2]) p) =>
        (optional(seq(float[2])) o2, optional(float[2]) p2, bool has, optional(seq(float[2])) none) {
    o2 = Identity (o)
    p2 = Identity (p)
    has = OptionalHasElement (p)
    none = Optional <type: type_proto = seq(float[2])> ()
}"""


@pytest.mark.parametrize("device", ["REFERENCE", "CPU"])
def test_optionals_that_are_inputs(device):
    prepared = DhcBackend.prepare(model(OPTIONALS), device)
    pair = np.array([1, 2], np.float32)
    for o, p in (([pair, 2 * pair], pair), (None, None), ([], 3 * pair)):
        o2, p2, has, none = prepared.run([o, p])
        assert (o2 is None) == (o is None)
        same(o2 or [], o or [])
        assert (p2 is None) == (p is None)
        if p is not None:
            same(p2, p)
        assert bool(has) == (p is not None)
        assert none is None


LOOP = """g (float[2] x, int64 n, int64[2] stop) => (seq(float[2]) t, int64[m] log) {
    e = SequenceEmpty ()
    t, log = Loop (n, , e) <body = b (int64 i, bool c, seq(float[2]) before) =>
            (bool go, seq(float[2]) after, int64 seen) {
        limit = ReduceMax <keepdims: int = 0> (stop)
        go = Less (i, limit)
        y = Add (x, x)
        after = SequenceInsert (before, y)
        seen = Identity (i)
    }>
}"""


def test_a_loop_whose_end_depends_on_data_stays_a_loop():
    x, n, stop = np.array([1, 2], np.float32), np.array(9), np.array([1, 2])
    t, log = DhcBackend.run_model(model(LOOP), [x, n, stop], "REFERENCE")
    same(t, [2 * x] * 3)
    same(log, np.array([0, 1, 2]))
    graph = load_onnx(model(LOOP).SerializeToString(), values={"n": n})
    assert [node.op.name for node in graph].count("add") == 0, "what was written out in vain is removed"
    with pytest.raises(UnsupportedError, match="interpreter only"):
        DhcBackend.run_model(model(LOOP), [x, n, stop], "CPU")
    graph = load_onnx(model(LOOP).SerializeToString(), values={"n": n, "stop": stop})
    assert graph.output_names == ["t.0", "t.1", "t.2", "log"]
    found = graph.compile("cpu")(x)
    for value, wanted in zip(found, [2 * x, 2 * x, 2 * x, np.array([0, 1, 2])], strict=True):
        same(value, wanted)


NESTED = """g (float[2] x) => (seq(float[2]) t) {
    e = SequenceEmpty ()
    n = Constant <value_int: int = %d> ()
    true = Constant <value_int: int = 1> ()
    c = Cast <to: int = 9> (true)
    t = Loop (n, c, e) <body = b (int64 i, bool c1, seq(float[2]) s1) => (bool d1, seq(float[2]) r1) {
        d1 = Identity (c1)
        r1 = Loop (n, c, s1) <body = b2 (int64 j, bool c2, seq(float[2]) s2) => (bool d2, seq(float[2]) r2) {
            d2 = Identity (c2)
            r2 = %s
        }>
    }>
}"""


@pytest.mark.parametrize(
    ("count", "body", "written_out"),
    [
        (3, "SequenceInsert (s2, x)", True),
        (40, "SequenceInsert (s2, x)", False),  # more elements than are followed
        (100, "Identity (s2)", False),  # more iterations than are written out
    ],
)
def test_nested_loops_are_written_out_within_a_budget(count, body, written_out):
    proto = model(NESTED % (count, body))
    graph = load_onnx(proto.SerializeToString())
    assert ("loop" in {node.op.name for node in graph}) != written_out
    assert len(graph.outputs) == (count**2 if written_out else 1)
    (found,) = DhcBackend.run_model(proto, [X[0, :2]], "REFERENCE")
    same(found, [X[0, :2]] * count**2 if "Insert" in body else [])


def test_the_position_may_be_known_at_run_time_only():
    proto = model("""g (float[3,4] x, int64 at) => (float[1,4] y) {
        s = SplitToSequence <axis: int = 0> (x)
        y = SequenceAt (s, at)
    }""")
    prepared = DhcBackend.prepare(proto, "CPU")
    for at in (0, -1, 1):
        same(prepared.run([X, np.array(at)])[0], X[[at]])
    assert prepared.fixed == ()
    with pytest.raises(ModelError, match="out of"):
        prepared.run([X, np.array(3)])


@pytest.mark.parametrize("device", ["REFERENCE", "CPU"])
def test_the_sizes_of_pieces_may_be_known_at_run_time_only(device):
    proto = model("""g (float[n,2] x, int64[2] sizes) => (seq(float[k,2]) s, int64 count) {
        s = SplitToSequence <axis: int = 0> (x, sizes)
        count = SequenceLength (s)
    }""")
    prepared = DhcBackend.prepare(proto, device)
    for sizes in ((1, 2), (4, 0), (2, 3)):
        x = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2)
        s, count = prepared.run([x, np.array(sizes)])
        same(s, [x[: sizes[0]], x[sizes[0] :]])
        same(count, np.array(2))
    assert prepared.fixed == ()
    with pytest.raises(DhcError):
        prepared.run([X[:, :2], np.array([1, 1])])


def test_a_loop_uses_one_value_by_two_names():
    proto = model("""g (float[2] x, int64 n, bool c) => (float[2] y) {
        again = Identity (x)
        y = Loop (n, c, x) <body = b (int64 i, bool c1, float[2] v) => (bool c2, float[2] w) {
            c2 = Identity (c1)
            part = Add (v, x)
            w = Mul (part, again)
        }>
    }""")
    x = np.array([1, 2], np.float32)
    for device in ("REFERENCE", "CPU"):
        same(DhcBackend.run_model(proto, [x, np.array(2), np.array(True)], device)[0], ((x + x) * x + x) * x)


def test_a_loop_uses_elements_of_a_sequence_around_it():
    """Names of elements may be those of other values: they do not hide each other."""
    proto = model("""g (float[2] x, float[2] w, int64 n, bool c) => (float[2] y) {
        "s.0" = Neg (x)
        s = SequenceConstruct (x, w)
        one = Constant <value_int: int = 1> ()
        y = Loop (n, c, x) <body = b (int64 i, bool c1, float[2] v) => (bool c2, float[2] r) {
            c2 = Identity (c1)
            last = SequenceAt (s, one)
            part = Add (v, last)
            r = Add (part, "s.0")
        }>
    }""".replace('"s.0"', "s_0"))  # fmt: skip
    for node in [*proto.graph.node, *proto.graph.node[-1].attribute[0].g.node]:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "s.0" if name == "s_0" else name
    x, w = np.array([1, 2], np.float32), np.array([5, 7], np.float32)
    for device in ("REFERENCE", "CPU"):
        (y,) = DhcBackend.run_model(proto, [x, w, np.array(2), np.array(True)], device)
        same(y, x + 2 * (w - x))


TAKES_SEQUENCE = model("g (seq(float[k]) s, float[2] x) => (seq(float[k]) t) { t = SequenceInsert (s, x) }")


def test_shapes_of_elements_are_given_when_a_model_is_loaded():
    data = TAKES_SEQUENCE.SerializeToString()
    graph = load_onnx(data, shapes={"s": [[3], ["N"]]})
    assert [v.name for v in graph.inputs] == ["s.0", "s.1", "x"]
    assert graph.output_names == ["t.0", "t.1", "t.2"]
    assert containers_of(graph) == {"s": ["s.0", "s.1"], "t": ["t.0", "t.1", "t.2"]}
    assert load_onnx(data).output_names == ["t"]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (None, UsageError, "a list with the shape of each element"),
        ("ab", UsageError, "a list with the shape of each element"),
        ([3], UsageError, "a shape"),
        ([[3, 4]], ShapeError, "does not fit"),
        ([[2]] * 1025, UsageError, "1024 are the limit"),
    ],
)
def test_wrong_shapes_of_elements(given, kind, message):
    with pytest.raises(kind, match=message):
        load_onnx(TAKES_SEQUENCE.SerializeToString(), shapes={"s": given})


def test_elements_named_like_another_input():
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("SequenceInsert", ["s", "s.0"], ["t"])],
            "g",
            [helper.make_tensor_value_info("s.0", TensorProto.FLOAT, [2]),
             helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2])],
            [helper.make_tensor_sequence_value_info("t", TensorProto.FLOAT, [2])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )  # fmt: skip
    with pytest.raises(UsageError, match="named like another"):
        load_onnx(proto.SerializeToString(), shapes={"s": [[2]]})


def test_outputs_keep_their_sequence_when_names_are_taken():
    proto = model("""g (float[2] x) => (seq(float[2]) t, float[2] u) {
        t = SequenceConstruct (x)
        u = Neg (x)
    }""")
    proto.graph.output[1].name = proto.graph.node[1].output[0] = "t.0"
    graph = load_onnx(proto.SerializeToString())
    assert graph.output_names == ["t", "t.0"]


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
