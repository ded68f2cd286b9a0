"""The text form: what is printed reads back as the same graph, and errors point at the place."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhc_runtime.errors import DhcError, ParseError, UsageError, VerifyError

from dhc.ir import (
    Builder,
    Graph,
    ImageType,
    Location,
    Operand,
    OptionalType,
    QuantType,
    SequenceType,
    TensorType,
    dtype,
    registry,
    sym,
)
from dhc.ir.kinds import Structural
from dhc.ir.op import Attr, OpDef
from dhc.ir.text import parse_graph, print_graph

ALL_KINDS = OpDef(
    name="test_all_attribute_kinds",
    doc="Takes one attribute of every kind.",
    operands=(Operand("x", sequence=True, variadic=True),),
    attrs=(
        Attr("i", "int", 7), Attr("f", "float", 0.0), Attr("b", "bool", False), Attr("s", "str", ""),
        Attr("is_", "ints", ()), Attr("fs", "floats", (1.0,)), Attr("ss", "strs", ()), Attr("d", "dim", 1),
        Attr("ds", "dims", ()), Attr("t", "dtype", dtype("f32")), Attr("n", "symbol"), Attr("ty", "type", None),
        Attr("tys", "types", ()),
    ),
    infer=lambda call: [call.attrs.ty] if call.attrs.ty is not None else [],
    reference=lambda call, *x: (),
    kind=Structural("host"),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def all_kinds():
    registry.load()
    registry._OPS[ALL_KINDS.name] = ALL_KINDS
    yield
    del registry._OPS[ALL_KINDS.name]


def again(graph: Graph, **options) -> Graph:
    """Prints, parses and prints again; the two texts must be equal."""
    text = print_graph(graph, **options)
    parsed = parse_graph(text)
    assert print_graph(parsed, **options) == text
    return parsed


def small() -> Graph:
    graph = Graph()
    x = graph.input("x", "f32", ("N", 4))
    b = Builder(graph, Location("net.onnx", node="scale", op="Mul"))
    graph.output(b.mul(x, b.constant(0.5, "f32", name="half"), name="y"), names=["logits"])
    return graph


def test_golden():
    assert print_graph(small()) == (
        'graph @main(%x: f32[N, 4]) -> (%y: f32[N, 4] as "logits") {\n'
        "  %half = constant() {value = dense<f32[]: 0.5>, dtype = f32} : f32[]"
        '  loc("net.onnx", node = "scale", op = "Mul")\n'
        '  %y = mul(%x, %half) : f32[N, 4]  loc("net.onnx", node = "scale", op = "Mul")\n'
        "  return %y\n"
        "}\n"
    )


def test_locations_can_be_left_out():
    assert "loc(" not in print_graph(small(), locations=False)
    assert parse_graph(print_graph(small(), locations=False)).nodes[0].location == Location()


def test_location_reads_back():
    where = Location('a "b".py', 17, "n\n1", "Conv")
    graph = Graph()
    Builder(graph, where).constant(1)
    assert again(graph).nodes[0].location == where


@pytest.mark.parametrize(
    "name",
    ["x", "a b", "12", "0", "/layer1/conv/Conv_output_0", "ü", 'q"uote', "back\\slash", "\n", "\ud800", "a.b", ""],
)
def test_odd_names(name):
    graph = Graph(name or "g")
    x = graph.input(name, "f32", (2,))
    y = Builder(graph).add(x, x, name=name)
    graph.output(y, names=[name or "out"])
    graph.metadata[name] = name
    graph.nodes[0].device = name or "d"
    parsed = again(graph)
    assert parsed.inputs[0].name == name
    assert parsed.name == graph.name
    assert parsed.output_names == graph.output_names
    assert parsed.metadata == graph.metadata
    assert parsed.nodes[0].device == graph.nodes[0].device


def test_equal_hints_get_different_names():
    graph = Graph()
    x = graph.input("x", "f32", (2,))
    b = Builder(graph)
    y = b.add(x, x, name="x")
    graph.output(b.add(y, y, name="x_1"), b.add(y, y), y)
    parsed = again(graph)
    names = [r.name for n in parsed for r in n.results]
    assert len(set(names)) == len(names)
    assert parsed.output_names == graph.output_names


TYPES = [
    TensorType(dtype("f32"), (2, sym("N") * 2 + 1, sym("N") // 3)),
    TensorType(dtype("bool"), (0,)),
    TensorType(dtype("i8"), (4, 3), quant=QuantType((0.1, 1e-30, 3.0), (0, -1, 2), axis=1, bits=7)),
    TensorType(dtype("u8"), (), quant=QuantType((0.1,), (128,))),
    ImageType(
        dtype("u8"), (3, sym("H"), sym("W")), color="rgb", unit="hu", layout="CHW", spacing=(0.5, 1.0),
        origin=(-1.0, 1e300), orientation=(1.0, 0.0, 0.0, 1.0),
    ),
    ImageType(dtype("u8"), (2, 2), quant=QuantType((0.5,), (0,))),
    SequenceType(TensorType(dtype("str"), (sym("K"),))),
    OptionalType(SequenceType(ImageType(dtype("f16"), (1, 1)))),
]  # fmt: skip


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_types(type_):
    graph = Graph()
    graph.output(graph.add_input("x", type_))
    parsed = again(graph)
    assert parsed.inputs[0].type == type_
    assert parsed.outputs[0] is parsed.inputs[0]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_types_as_attributes(type_):
    graph = Graph()
    graph.create(ALL_KINDS, [], {"n": "q", "ty": type_, "tys": [type_, type_]})
    parsed = again(graph)
    assert parsed.nodes[0].attrs == graph.nodes[0].attrs


@pytest.mark.parametrize(
    "attrs",
    [
        {"i": -3}, {"i": 7}, {"i": 2**70}, {"f": -0.0}, {"f": 0.0}, {"f": math.inf}, {"f": -math.inf}, {"f": 5e-324},
        {"f": 0.1 + 0.2}, {"f": 1e22}, {"b": True}, {"b": False}, {"s": 'a "b" \\ \n \x00 é'}, {"is_": [1, -2]},
        {"is_": []}, {"fs": [1.0]}, {"fs": []}, {"fs": [math.inf, -1.5]}, {"ss": ["", "a,b", "]"]},
        {"d": sym("N")}, {"d": -sym("N") + 3}, {"ds": [sym("N") * sym("M") - 2, 4, 0]}, {"t": "bf16"}, {"t": "f32"},
        {"d": (sym("N") + 1) // 2}, {"ds": [(sym("N") + 1) % 2, (sym("N") - 3) // 4 * sym("M")]},
    ],
    ids=str,
)  # fmt: skip
def test_attribute_values(attrs):
    graph = Graph()
    graph.create(ALL_KINDS, [], {"n": "q", **attrs})
    parsed = again(graph)
    assert repr(dict(parsed.nodes[0].attrs)) == repr(dict(graph.nodes[0].attrs))


def test_nan_attribute():
    graph = Graph()
    graph.create(ALL_KINDS, [], {"n": "q", "f": math.nan})
    assert math.isnan(again(graph).nodes[0].attrs["f"])


def test_defaults_are_left_out():
    graph = Graph()
    graph.create(ALL_KINDS, [], {"n": "q", "i": 7, "f": 0, "fs": [1]})
    assert "{n = q}" in print_graph(graph)


ARRAYS = [
    np.array(math.pi, np.float32), np.array([1, -0.0, math.inf, -math.inf, math.nan], np.float64),
    np.array([[0.1, 1e-45], [3.4e38, 16777217]], np.float32), np.array([65504, 6e-8, 0.1], np.float16),
    np.array([[True, False]]), np.array([1 + 2j, complex(-0.0, math.inf)], np.complex64), np.array([1e-300j]),
    np.array([-(2**63), 2**63 - 1]), np.array([2**64 - 1], np.uint64), np.zeros((2, 0, 3), np.int8), np.zeros(0, "?"),
    np.array(["a", 'b"\n', ""], dtype=object), np.array([["é"]], dtype=object), np.zeros((0,), dtype=object),
    np.arange(40, dtype=np.uint16).reshape(4, 10), np.arange(20, dtype=">i4"), np.arange(17) > 3,
    np.arange(24, dtype=np.complex128).reshape(2, 3, 4), np.linspace(0, 1, 33, dtype=np.float32)[::2],
    np.asfortranarray(np.arange(36.0).reshape(6, 6)), np.arange(4, dtype=">f8"),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["full", "inline", "elide"])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_constants(array, mode):
    graph = Graph()
    graph.output(Builder(graph).constant(array))
    table: dict[str, np.ndarray] = {}
    text = print_graph(graph, constants=mode, collect=table)
    parsed = parse_graph(text, constants=table)
    assert print_graph(parsed, constants=mode) == text
    value = parsed.nodes[0].attrs["value"]
    assert value.shape == array.shape
    assert value.dtype == array.dtype.newbyteorder("=") and not value.flags.writeable
    if array.dtype == object:
        assert value.tolist() == array.tolist()
    else:
        assert np.ascontiguousarray(value).tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


@pytest.mark.parametrize("name", ["bf16", "i4", "u4"])
@pytest.mark.parametrize("size", [3, 40])
def test_constants_of_packed_types(name, size):
    graph = Graph()
    array = (np.arange(size) % 7).astype(dtype(name).numpy)
    graph.output(Builder(graph).constant(array, name))
    parsed = again(graph)
    assert parsed.outputs[0].dtype == dtype(name)
    assert parsed.nodes[0].attrs["value"].tobytes() == array.tobytes()


def test_every_float16_reads_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    array = bits.view(np.float16)
    array = array[~np.isnan(array)]
    graph = Graph()
    graph.output(Builder(graph).constant(array))
    assert np.array_equal(
        parse_graph(print_graph(graph, constants="inline")).nodes[0].attrs["value"].view(np.uint16),
        array.view(np.uint16),
    )


def test_nan_bits_survive():
    array = np.array([0x7FC00001, 0xFFC00000, 0x7FC00000], np.uint32).view(np.float32)
    graph = Graph()
    graph.output(Builder(graph).constant(array))
    for mode in ("full", "inline"):
        value = parse_graph(print_graph(graph, constants=mode)).nodes[0].attrs["value"]
        assert value.tobytes() == array.tobytes()


def test_elided_constants_share_their_hash_only_when_equal():
    graph = Graph()
    b = Builder(graph)
    for array in (
        np.zeros(32, "f4"),
        np.zeros(32, "f4"),
        np.zeros(32, "i4"),
        np.zeros((4, 8), "f4"),
        np.ones(32, "f4"),
    ):
        b.constant(array)
    table: dict[str, np.ndarray] = {}
    text = print_graph(graph, constants="elide", collect=table)
    assert len(table) == 4
    with pytest.raises(ParseError, match="not in the text"):
        parse_graph(text)
    swapped = {key: np.zeros(3, "f4") for key in table}
    with pytest.raises(ParseError, match="array given for it"):
        parse_graph(text, constants=swapped)


def test_regions_read_back_with_their_parents():
    body = Graph("body")
    p = body.input("p", "f32", ("N",))
    q = body.input("q", "f32", ("N",))
    body.metadata["m"] = "1"
    body.output(Builder(body).add(p, q), names=["sum"])
    graph = Graph()
    x = graph.input("x", "f32", ("N",))
    graph.output(*Builder(graph).call("fused", x, x, regions=[body], names=["y"]).graph.nodes[0].results)
    parsed = again(graph)
    region = parsed.nodes[0].regions[0]
    assert region.parent is parsed and region.output_names == ["sum"] and region.metadata == {"m": "1"}


def test_types_may_be_left_out_and_comments_are_skipped():
    graph = parse_graph("graph @g(%x: f32[N, 2]) { # comment\n %y = add(%x, %x)\n return %y }")
    assert graph.outputs[0].type == TensorType(dtype("f32"), (sym("N"), 2)) and graph.output_names == ["y"]


def test_refined_types_are_kept():
    quant = "quant(scale = [0.5], zero_point = [0], bits = 8)"
    text = f"graph @g(%x: u8[H, 2]) {{ %y = add(%x, %x) : u8[H, 2] {quant} return %y }}"
    assert parse_graph(text).outputs[0].type.quant == QuantType((0.5,), (0,))


def test_new_symbols_avoid_those_of_the_text():
    graph = parse_graph('graph @g(%t: i64[1], %x: f32[u3]) {\n %r = read_dims(%t) {names = ["u17"]}\n return %r }')
    assert graph.fresh_symbol() == "u18"


GOOD = "graph @g(%xen: f32[N, 2]) -> (%y: f32[N, 2]) {\n  %y = add(%xen, %xen) : f32[N, 2]\n  return %y\n}\n"


@pytest.mark.parametrize(
    ("old", "new", "message", "line", "column"),
    [
        ("add(", "ad(", "no op 'ad'.*did you mean .*add", 2, 8),
        ("%xen)", "%xem)", "%xem is not defined here.*did you mean xen", 2, 18),
        ("%xen)", "%xen) {axis = 1}", "no attribute 'axis'", 2, 25),
        ("%y = add", "%y, %z = add", "1 results, got names for 2", 2, 12),
        ("%y = add", "%xen = add", "defined twice", 2, 3),
        ("return %y", "return %y, %y", "not those after ->", 3, 3),
        ("return %y", "", "expected a node or `return`", 4, 1),
        ("f32[N, 2])", "f33[N, 2])", "no element type.*did you mean f32", 1, 16),
        ("f32[N, 2])", "f32[N, 2)", "expected ','", 1, 24),
        ("f32[N, 2])", "f32[N, -2])", "negative size", 1, 16),
        ("f32[N, 2])", "f32[floordiv(N, 0), 2])", "division of a size by zero", 1, 20),
        ("f32[N, 2])", "f32[N, 99999999999999999999999])", "too large for a size", 1, 23),
        ("}\n", "} x", "unexpected text after the graph", 4, 3),
        ("@g", "g", "expected the graph's name", 1, 7),
        ("add", "\x07add", "unexpected character", 2, 8),
        ("@g", '@"g', "does not end on its line", 1, 7),
        (" : f32[N, 2]\n", ' @"\\q"\n', "bad string", 2, 24),
        (" : f32[N, 2]\n", ' loc(file = "x")\n', "a location has", 2, 28),
    ],
)
def test_errors_point_at_the_place(old, new, message, line, column):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(ParseError, match=message) as caught:
        parse_graph(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert caught.value.source == text.split("\n")[line - 1]
    assert str(caught.value).split("\n")[-1] == " " * (column - 1) + "^"


@pytest.mark.parametrize("type_", ["f32[N, 3]", "f32[N]", "f64[N, 2]", "f32[N+1, 2]", "f32[N, 2], f32[N, 2]"])
def test_wrong_types_are_refused(type_):
    with pytest.raises(VerifyError, match="line 2"):
        parse_graph(GOOD.replace(") : f32[N, 2]", f") : {type_}", 1))


def test_wrong_output_types_are_refused():
    with pytest.raises(VerifyError, match="line 1"):
        parse_graph(GOOD.replace("(%y: f32[N, 2]", "(%y: f32[M, 2]", 1))


def test_shape_errors_show_the_line():
    with pytest.raises(ParseError, match=r"do not broadcast.*line 2"):
        parse_graph("graph @g(%a: f32[2], %b: f32[3]) {\n  %c = add(%a, %b)\n  return %c\n}")


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ("dense<f32[1099511627776]: 0x00>", "larger than the limit"),
        ("dense<f32[2, 99999999, 99999999]: [1.0]>", "larger than the limit"),
        ("dense<f32[0, 99999999999999]: []>", "larger than the limit"),
        ("dense<u8[4000000000]: 0x00>", "hexadecimal digits, got 2"),
        ("dense<u8[4000000000]: [1]>", "expected ','"),
        ("dense<u8[1]: [256]>", "does not fit u8"),
        ("dense<u8[1]: [-1]>", "does not fit u8"),
        ("dense<i4[1]: [8]>", "does not fit i4"),
        ("dense<u8[2]: [1]>", "expected ','"),
        ("dense<u8[1]: [1, 2]>", "expected ']' after 1"),
        ("dense<u8[2]: 1>", "expected a list"),
        ("dense<bool[1]: 0x02>", "a bool is"),
        ("dense<bool[1]: [1]>", "true or false"),
        ("dense<u8[1]: 0xf>", "hexadecimal digits"),
        ("dense<str[1]: 0xff>", "expected a list"),
        ("dense<u8[N]: [1]>", "sizes of a constant are numbers"),
        (f"dense<u8[{', '.join('1' * 40)}]: 0x00>", "rank 40"),
    ],
)
def test_bad_constants(dense, message):
    with pytest.raises(ParseError, match=message):
        parse_graph(f"graph @g() {{ %c = constant() {{value = {dense}, dtype = u8}} return %c }}")


@pytest.mark.parametrize(
    "text",
    [
        "graph @g(" + "%x: " + "seq<" * 5000 + "f32[]" + ">" * 5000 + ") { return %x }",
        "graph @g(%x: f32[" + "(" * 5000 + "N" + ")" * 5000 + "]) { return %x }",
        "graph @g(%x: f32[" + "-" * 5000 + "N]) { return %x }",
        "graph @g(%x: f32[" + "*".join(["(a+b+c+d+e+f+h+i+j+k)"] * 60) + "]) { return %x }",
        "graph @g(%x: f32[]) {" + "%y = fused(%x) { graph @g(%x: f32[]) {" * 2000,
        "graph @g(%x: f32[" + "9" * 100_000 + "]) { return %x }",
    ],
    ids=["types", "parentheses", "minus", "products", "regions", "digits"],
)
def test_deep_text_is_refused(text):
    with pytest.raises(ParseError, match=r"nested|too large|too long"):
        parse_graph(text)


def test_any_truncation_is_a_clear_error():
    text = print_graph(small())
    for end in range(len(text) - 2):
        with pytest.raises(DhcError):
            parse_graph(text[:end])


def test_unknown_mode():
    with pytest.raises(UsageError, match="inline"):
        print_graph(small(), constants="none")
