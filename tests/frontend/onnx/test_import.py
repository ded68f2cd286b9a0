"""Functions, sparse tensors, fixed inputs, shape arithmetic, control flow: what the node cases do not reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import FunctionProto, SparseTensorProto, TensorProto, helper, numpy_helper

from dhc.errors import DhcError, ModelError, ShapeError, UnsupportedError, UsageError
from dhc.frontend.onnx import load_onnx
from dhc.frontend.onnx.context import NeedsValueError

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name: str, dims: Any, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, dims)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node whose names are separated by spaces; `_` is an input that is left out."""
    return helper.make_node(op, [i if i != "_" else "" for i in inputs.split()], outputs.split(), **attributes)


def ints(name: str, *values: int) -> TensorProto:
    return helper.make_tensor(name, INT64, [len(values)], values)


def floats(name: str, *values: float) -> TensorProto:
    return helper.make_tensor(name, FLOAT, [len(values)], values)


def model(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    initializers: Any = (),
    functions: Any = (),
    opset: int = 18,
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, functions=list(functions)).SerializeToString())


def ops(graph: Any) -> list[str]:
    return [n.op.name for n in graph]


# ---- functions -------------------------------------------------------------------------------------------------------


def scaled_function(default: float | None) -> FunctionProto:
    """z = scale * a (+ b when b is given), the scale an attribute; calls another function for the product."""
    function = FunctionProto(name="Scaled", domain="own")
    function.input.extend(["a", "b"])
    function.output.append("z")
    constant = node("Constant", "", "s")
    reference = constant.attribute.add(name="value_float", type=1)
    reference.ref_attr_name = "scale"
    product = helper.make_node("Product", ["a", "s"], ["p"], domain="own")
    function.node.extend([constant, product, node("Sum", "p b", "z")])
    if default is None:
        function.attribute.append("scale")
    else:
        function.attribute_proto.append(helper.make_attribute("scale", default))
    for domain, version in (("", 18), ("own", 1)):
        function.opset_import.add(domain=domain, version=version)
    return function


def product_function() -> FunctionProto:
    function = FunctionProto(name="Product", domain="own")
    function.input.extend(["x", "y"])
    function.output.append("s")
    function.node.append(node("Mul", "x y", "s"))
    function.opset_import.add(domain="", version=18)
    return function


@pytest.mark.parametrize(("attributes", "scale"), [({}, 3.0), ({"scale": 2.0}, 2.0)])
def test_functions_are_inlined_with_their_attributes(attributes: dict[str, float], scale: float) -> None:
    calls = [
        helper.make_node("Scaled", ["x", "x"], ["m"], domain="own", **attributes),
        helper.make_node("Scaled", ["m"], ["y"], domain="own", **attributes),
    ]
    data = model(calls, [value("x", [3])], [value("y", [3])], functions=[scaled_function(3.0), product_function()])
    graph = load_onnx(data)
    x = np.array([1, 2, -1], np.float32)
    np.testing.assert_array_equal(graph.evaluate(x)[0], scale * (scale * x + x))


def test_function_in_a_nested_graph_and_nested_graph_in_a_function() -> None:
    function = FunctionProto(name="Choose", domain="own")
    function.input.extend(["c", "v"])
    function.output.append("z")
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Exp")):
        branches[name] = helper.make_graph([node(op, "v", f"{name}_out")], name, [], [value(f"{name}_out", None)])
    function.node.append(helper.make_node("If", ["c"], ["z"], **branches))
    function.opset_import.add(domain="", version=18)
    inner = helper.make_graph(
        [helper.make_node("Choose", ["c", "x"], ["t"], domain="own")], "b", [], [value("t", None)]
    )
    other = helper.make_graph([node("Identity", "x", "e")], "b", [], [value("e", None)])
    nodes = [helper.make_node("If", ["d"], ["y"], then_branch=inner, else_branch=other)]
    inputs = [value("x", [2]), value("c", [], BOOL), value("d", [], BOOL)]
    graph = load_onnx(model(nodes, inputs, [value("y", [2])], functions=[function]))
    x = np.array([1, 2], np.float32)
    for c, d, wanted in ((True, True, -x), (False, True, np.exp(x)), (True, False, x)):
        np.testing.assert_allclose(graph.evaluate(x=x, c=np.array(c), d=np.array(d))[0], wanted, rtol=1e-6)


def test_unsupported_nodes_inside_of_functions_are_listed() -> None:
    function = product_function()
    function.node.append(node("NoSuchOperator", "x", "unused"))
    call = helper.make_node("Product", ["x", "x"], ["y"], domain="own")
    with pytest.raises(UnsupportedError, match="NoSuchOperator"):
        load_onnx(model([call], [value("x", [2])], [value("y", [2])], functions=[function]))


# ---- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]])
def test_sparse_initializers(indices: Any) -> None:
    sparse = SparseTensorProto(dims=[2, 3])
    sparse.values.CopyFrom(floats("w", 7.0, 9.0))
    array = np.array(indices)
    sparse.indices.CopyFrom(helper.make_tensor("i", INT64, array.shape, array.reshape(-1)))
    graph = helper.make_graph([node("Add", "x w", "y")], "g", [value("x", [2, 3])], [value("y", [2, 3])])
    graph.sparse_initializer.append(sparse)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (result,) = load_onnx(proto.SerializeToString()).evaluate(np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(result, [[0, 7, 0], [0, 0, 9]])


def test_initializers_listed_as_inputs_are_constants() -> None:
    data = model([node("Add", "x w", "y")], [value("x", [2]), value("w", [2])], [value("y", [2])], [floats("w", 1, 2)])
    assert [v.name for v in load_onnx(data).inputs] == ["x"]


def test_nodes_in_any_order() -> None:
    data = model([node("Exp", "a", "y"), node("Neg", "x", "a")], [value("x", [2])], [value("y", [2])])
    (result,) = load_onnx(data).evaluate(np.array([1, 2], np.float32))
    np.testing.assert_allclose(result, np.exp([-1.0, -2.0]), rtol=1e-6)


# ---- shapes and values that the caller gives -------------------------------------------------------------------------


def reduction() -> bytes:
    nodes = [node("Cast", "axes", "a", to=INT64), node("ReduceSum", "x a", "y", keepdims=0)]
    return model(nodes, [value("x", ["N", 3]), value("axes", [1], TensorProto.INT32)], [value("y", None)])


def test_inputs_fixed_to_values() -> None:
    with pytest.raises(NeedsValueError) as caught:
        load_onnx(reduction())
    assert caught.value.inputs == ("axes",)
    graph = load_onnx(reduction(), values={"axes": np.array([1], np.int32)})
    assert [v.name for v in graph.inputs] == ["x"]
    np.testing.assert_array_equal(graph.evaluate(np.ones((4, 3), np.float32))[0], [3, 3, 3, 3])


@pytest.mark.parametrize("given", [np.array([1]), np.array(1, np.int32), np.array([1, 1], np.int32)])
def test_fixed_values_must_fit(given: np.ndarray) -> None:
    with pytest.raises(UsageError):
        load_onnx(reduction(), values={"axes": given})


def test_shapes_given_by_the_caller() -> None:
    data = model([node("Relu", "x", "y")], [value("x", ["N", 3, None])], [value("y", None)])
    assert str(load_onnx(data).inputs[0].type) == "f32[N, 3, x_2]"
    assert str(load_onnx(data, {"x": [1, 3, 8]}).outputs[0].type) == "f32[1, 3, 8]"
    assert str(load_onnx(data, {"x": ["B", 3, "2*B"]}).outputs[0].type) == "f32[B, 3, 2*B]"
    for shape, error in (([1, 4, 8], ShapeError), ([1, 3], ShapeError)):
        with pytest.raises(error):
            load_onnx(data, {"x": shape})
    with pytest.raises(UsageError, match="no input"):
        load_onnx(data, {"z": [1]})


# ---- shape arithmetic of exporters -----------------------------------------------------------------------------------


def test_expand_idiom_of_exporters() -> None:
    """Where(Equal(shape, -1), ConstantOfShape(n) * 1, shape): how PyTorch writes expand."""
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s zero one", "batch"),
        node("Concat", "batch minus", "wanted", axis=0),
        node("ConstantOfShape", "two", "ones", value=ints("v", 1)),
        node("Mul", "ones minus", "marks"),
        node("Equal", "wanted marks", "open"),
        node("Where", "open ones wanted", "shape"),
        node("Expand", "c shape", "y"),
    ]
    numbers = [ints("zero", 0), ints("one", 1), ints("two", 2), ints("minus", -1), floats("c", 5.0, 6.0)]
    numbers[4].dims[:] = [1, 2]
    graph = load_onnx(model(nodes, [value("x", ["N", 7])], [value("y", None)], numbers))
    assert ops(graph) == ["constant", "broadcast_to"]
    for n in (1, 4):
        np.testing.assert_array_equal(graph.evaluate(np.zeros((n, 7), np.float32))[0], [[5, 6]] * n)


@pytest.mark.parametrize(("rounding", "scale"), [("Floor", 2.0), ("Floor", 0.5), ("Ceil", 1.5), ("Floor", 1 / 3)])
@pytest.mark.parametrize("size", [5, 8, 9])
def test_sizes_scaled_in_floating_point(rounding: str, scale: float, size: int) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "h", axis=0),
        node("Cast", "h", "f", to=FLOAT),
        node("Mul", "f scale", "m"),
        node(rounding, "m", "r"),
        node("Cast", "r", "i", to=INT64),
        node("Concat", "one one i i", "sizes", axis=0),
        node("Resize", "x _ _ sizes", "y", mode="nearest"),
    ]
    numbers = [ints("two", 2), ints("one", 1), floats("scale", scale)]
    inputs = [value("x", [1, 1, "H", "W"])]
    graph = load_onnx(model(nodes, inputs, [value("y", None)], numbers))
    assert ops(graph) == ["resize"], "the sizes are attributes, nothing is computed at run time"
    (result,) = graph.evaluate(np.zeros((1, 1, size, size), np.float32))
    wanted = int(np.floor(size * scale) if rounding == "Floor" else np.ceil(size * scale))
    if scale == 1 / 3:
        wanted = size // 3
    assert result.shape == (1, 1, wanted, wanted)


def test_scaled_sizes_that_are_used_as_numbers() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Cast", "s", "f", to=FLOAT),
        node("Mul", "f half", "m"),
        node("Sqrt", "m", "r"),
        node("Mul", "x r", "y"),
    ]
    graph = load_onnx(model(nodes, [value("x", ["N"])], [value("y", None)], [floats("half", 0.5)]))
    (result,) = graph.evaluate(np.ones(8, np.float32))
    np.testing.assert_allclose(result, [2.0] * 8)


def test_branches_on_sizes_are_decided_at_import() -> None:
    """If(rank or size of an input): only the branch taken is imported."""
    branches = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "NotAnOperatorThatRuns")):
        op = op if op == "Neg" else "Exp"
        branches[name] = helper.make_graph([node(op, "x", f"{name}_o")], name, [], [value(f"{name}_o", None)])
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "n", axis=0),
        node("Equal", "n three", "c"),
        helper.make_node("If", ["c"], ["y"], **branches),
    ]
    graph = load_onnx(model(nodes, [value("x", ["N", 3])], [value("y", None)], [ints("one", 1), ints("three", 3)]))
    assert ops(graph) == ["neg"]


def test_range_over_a_size() -> None:
    zero, one = helper.make_tensor("zero", INT64, [], [0]), helper.make_tensor("one", INT64, [], [1])
    nodes = [node("Shape", "x", "s"), node("Squeeze", "s", "n"), node("Range", "zero n one", "y")]
    graph = load_onnx(model(nodes, [value("x", ["N"])], [value("y", None, INT64)], [zero, one]))
    for n in (0, 1, 6):
        np.testing.assert_array_equal(graph.evaluate(np.zeros(n, np.float32))[0], np.arange(n))


def test_sizes_that_depend_on_data() -> None:
    nodes = [node("NonZero", "x", "i"), node("Transpose", "i", "t"), node("GatherND", "x t", "y")]
    graph = load_onnx(model(nodes, [value("x", ["N", 2])], [value("y", None)]))
    x = np.array([[0, 1], [2, 0], [0, 0]], np.float32)
    np.testing.assert_array_equal(graph.evaluate(x)[0], [1, 2])
    np.testing.assert_array_equal(graph.evaluate(x * 0)[0], [])


# ---- control flow ----------------------------------------------------------------------------------------------------


def test_loop_whose_value_grows() -> None:
    body = helper.make_graph(
        [node("Identity", "c", "d"), node("Concat", "state x", "grown", axis=0), node("ReduceSum", "grown", "total")],
        "body",
        [value("i", [], INT64), value("c", [], BOOL), value("state", ["S"])],
        [value("d", [], BOOL), value("grown", None), value("total", None)],
    )
    nodes = [helper.make_node("Loop", ["trip", "", "x"], ["y", "totals"], body=body)]
    inputs = [value("x", ["N"]), value("trip", [], INT64)]
    graph = load_onnx(model(nodes, inputs, [value("y", None), value("totals", None)]))
    x = np.array([1, 2], np.float32)
    for trip in (0, 1, 3):
        y, totals = graph.evaluate(x=x, trip=np.array(trip))
        np.testing.assert_array_equal(y, np.tile(x, trip + 1))
        np.testing.assert_array_equal(totals.reshape(-1), [3.0 * (k + 2) for k in range(trip)])


def test_branches_of_different_size() -> None:
    branches = {
        "then_branch": helper.make_graph([node("Concat", "x x", "t", axis=0)], "t", [], [value("t", None)]),
        "else_branch": helper.make_graph([node("Identity", "x", "e")], "e", [], [value("e", None)]),
    }
    nodes = [helper.make_node("If", ["c"], ["z"], **branches), node("Exp", "z", "y")]
    graph = load_onnx(model(nodes, [value("x", ["N"]), value("c", [], BOOL)], [value("y", None)]))
    for c, count in ((True, 6), (False, 3)):
        assert graph.evaluate(x=np.zeros(3, np.float32), c=np.array(c))[0].shape == (count,)


def test_errors_name_the_node() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"], name="the_reshape")]
    with pytest.raises(ModelError, match="the_reshape"):
        load_onnx(model(nodes, [value("x", [5])], [value("y", None)], [ints("s", 2, -1)]))
    with pytest.raises(DhcError, match="the_matmul"):
        product = helper.make_node("MatMul", ["x", "x"], ["y"], name="the_matmul")
        load_onnx(model([product], [value("x", [5, 4])], [value("y", None)]))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bij,bkj->bik", [(2, 3, 4), (2, 5, 4)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("ii->i", [(3, 3)]),
        ("iij->j", [(3, 3, 2)]),
        ("i,j->ij", [(2,), (3,)]),
        ("i,i->", [(4,), (4,)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (5, 2, 4, 6)]),
        ("...i,i...->...", [(2, 3), (3, 2)]),
        ("ij", [(2, 3)]),
        ("ba", [(2, 3)]),
        ("ab,bc", [(2, 3), (3, 4)]),
        ("bhqd,bhkd->bhqk", [(1, 2, 3, 4), (1, 2, 5, 4)]),
        ("i...->...", [(2, 3, 4)]),
    ],
)
def test_einsum_against_numpy(equation: str, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"x{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    made = helper.make_node("Einsum", list(arrays), ["y"], equation=equation)
    data = model([made], [value(name, list(a.shape)) for name, a in arrays.items()], [value("y", None)])
    wanted = np.einsum(equation, *arrays.values())
    (result,) = load_onnx(data).evaluate(**arrays)
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)


def test_einsum_with_symbolic_sizes() -> None:
    made = helper.make_node("Einsum", ["a", "b"], ["y"], equation="bij,bjk->bik")
    graph = load_onnx(model([made], [value("a", ["B", "I", "J"]), value("b", ["B", "J", 2])], [value("y", None)]))
    for b, i, j in ((1, 2, 3), (4, 1, 2)):
        x, y = np.ones((b, i, j), np.float32), np.ones((b, j, 2), np.float32)
        np.testing.assert_array_equal(graph.evaluate(x, y)[0], np.full((b, i, 2), j, np.float32))


def test_names_that_are_not_utf8_are_refused() -> None:
    from tests.frontend.onnx.hostile_models import small_network

    data = small_network().SerializeToString()
    assert data.count(b"Conv") == 1
    with pytest.raises(ModelError, match="UTF-8"):
        load_onnx(data.replace(b"Conv", b"Con\xe0"))


def test_more_sizes_than_a_tensor_may_have_axes_are_refused_at_once() -> None:
    node = helper.make_node("ConstantOfShape", ["sizes"], ["y"])
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, [2**40])
    graph = helper.make_graph([node], "g", [sizes], [helper.make_empty_tensor_value_info("y")])
    with pytest.raises(ModelError, match="at most 64"):
        load_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())


@pytest.mark.parametrize(
    ("op", "a", "b", "wanted"),
    [
        ("Add", np.array([200, 1], np.uint8), np.array([100, 2], np.uint8), [44, 3]),
        ("Sub", np.array([200, 1], np.uint8), np.array([100, 2], np.uint8), [100, 255]),
        ("Mul", np.array([65536, 65536], np.int32), np.array([65536, 3], np.int32), [0, 196608]),
        ("Mul", np.array([2**63 - 1, 1]), np.array([100, 2]), [-100, 2]),
    ],
)
def test_arithmetic_on_constants_wraps_around(op: str, a: np.ndarray, b: np.ndarray, wanted: list[int]) -> None:
    """Sizes are followed as numbers without bounds; constants of a type are not."""
    constants = [numpy_helper.from_array(array, name) for name, array in (("a", a), ("b", b))]
    code = constants[0].data_type
    graph = load_onnx(model([node(op, "a b", "y")], [value("x", [1])], [value("y", None, code)], constants))
    (found,) = graph.evaluate(np.zeros(1, np.float32))
    assert found.dtype == a.dtype
    np.testing.assert_array_equal(found, np.array(wanted, a.dtype))


def test_casts_of_constants_keep_the_low_bits() -> None:
    constants = [numpy_helper.from_array(np.array([2**32 + 5]), "a")]
    graph = load_onnx(model([node("Cast", "a", "y", to=TensorProto.INT32)], [value("x", [1])],
                            [value("y", None, TensorProto.INT32)], constants))  # fmt: skip
    np.testing.assert_array_equal(graph.evaluate(np.zeros(1, np.float32))[0], np.array([5], np.int32))
