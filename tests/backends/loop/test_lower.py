"""Groups of ops as one kernel: golden texts, shared loops, fused reductions, symbolic sizes, edge shapes."""

import numpy as np
import pytest

from dhc.backends.loop.lower import lower_group
from dhc.errors import CompileError
from dhc.ir.builder import Builder
from dhc.ir.graph import Graph
from tests.backends.loop.harness import bindings, check_graph, graph_of, run_kernel

RNG = np.random.default_rng(11)


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def lowered(build, *inputs):
    graph = graph_of(build, *inputs)
    return lower_group(graph.nodes, graph.inputs, graph.outputs, "test")


def relu_add(b, x, y):
    return b.relu(b.add(x, y))


def test_elementwise_is_one_flat_loop():
    found = lowered(relu_add, ("f32", ["N", 5]), ("f32", ["N", 5]))
    assert (
        found.kernel.text
        == """\
kernel(x0: f32 read, x1: f32 read, y0: f32 write; n0)
  parallel for i1 in n0:
    let t1: f32 = x0[i1]
    let t2: f32 = x1[i1]
    let t3: f32 = (t1 + t2)
    let t4: f32 = max(t3, 0.0)
    y0[i1] = t4
"""
    )
    assert [str(p) for p in found.params] == ["5*N"]
    assert found.inplace == ((0, 0), (1, 0))


def test_a_bias_is_read_once_a_channel():
    found = lowered(relu_add, ("f32", ["N", 5, 7, 8]), ("f32", [5, 1, 1]))
    assert (
        found.kernel.text
        == """\
kernel(x0: f32 read, x1: f32 read, y0: f32 write; n0, n1, n2, n3)
  parallel for i0_i1 in n0:
    let t1: i64 = (i0_i1 / n1)
    let i0: i64 = t1
    let t2: i64 = fmod(i0_i1, n1)
    let i1: i64 = t2
    let t4: f32 = x1[i1]
    for i3 in n2:
      let t3: f32 = x0[(((i0 * n3) + (i1 * n2)) + i3)]
      let t5: f32 = (t3 + t4)
      let t6: f32 = max(t5, 0.0)
      y0[(((i0 * n3) + (i1 * n2)) + i3)] = t6
"""
    )
    assert found.inplace == ((0, 0),)


def test_a_reduction_takes_in_its_producer_and_its_epilogue():
    found = lowered(lambda b, x: b.sqrt(b.reduce_sum(b.mul(x, x), axes=[2, 3])), ("f32", ["N", 5, 7, 8]))
    assert (
        found.kernel.text
        == """\
kernel(x0: f32 read, y0: f32 write; n0, n1)
  parallel for i1 in n0:
    var a0_0: f32 = 0.0
    ordered for r0_1 in n1:
      let t1: f32 = x0[((i1 * n1) + r0_1)]
      let t2: f32 = (t1 * t1)
      reorder a0_0 = (a0_0 + t2)
    let t3: f32 = sqrt(a0_0)
    y0[i1] = t3
"""
    )


def test_sizes_are_parameters():
    one = lowered(relu_add, ("f32", [4, 5, 6]), ("f32", [5, 1]))
    other = lowered(relu_add, ("f32", [64, 32, 7]), ("f32", [32, 1]))
    symbolic = lowered(relu_add, ("f32", ["N", "C", "L"]), ("f32", ["C", 1]))
    assert one.kernel.symbol == other.kernel.symbol == symbolic.kernel.symbol
    assert one.params == (20, 5, 6, 30)
    assert other.params == (64 * 32, 32, 7, 32 * 7)


def test_reshape_costs_no_division():
    for shape in ([3, 4, 35], [12, 5, 7], [420]):
        found = lowered(lambda b, x, s=shape: b.exp(b.reshape(b.neg(x), shape=s)), ("f32", [3, 4, 5, 7]))
        assert found.kernel.text.count("for") == 1
        assert "/" not in found.kernel.text and "mod" not in found.kernel.text


GROUPS = {
    "diamond": (lambda b, x, y: b.mul(b.add(x, y), b.sub(b.add(x, y), b.exp(b.add(x, y)))), [(3, 5), (5,)]),
    "two_results": (lambda b, x, y: (b.add(x, y), b.mul(b.add(x, y), x)), [(3, 5), (3, 5)]),
    "two_shapes": (lambda b, x: (b.exp(x), b.reduce_sum(b.exp(x), axes=[0])), [(6, 5)]),
    "softmax_last": (lambda b, x: softmax(b, x, 2), [(2, 3, 40)]),
    "softmax_middle": (lambda b, x: softmax(b, x, 1), [(2, 9, 6)]),
    "softmax_first": (lambda b, x: softmax(b, x, 0), [(7, 3, 4)]),
    "layer_norm": (lambda b, x, w: layer_norm(b, x, w), [(4, 5, 33), (33,)]),
    "variance_of_all": (lambda b, x: b.reduce_mean(square(b, b.sub(x, b.reduce_mean(x))), keepdims=True), [(7, 11)]),
    "transpose_add": (lambda b, x, y: b.add(b.transpose(x, perm=[2, 0, 1]), y), [(3, 4, 5), (5, 3, 4)]),
    "reshape_bias_reshape": (
        lambda b, x, y: b.reshape(b.add(b.reshape(x, shape=[2, 3, 4, 5]), y), shape=[6, 20]), [(2, 60), (3, 1, 1)],
    ),
    "concat_of_sums": (lambda b, x, y: b.exp(b.concat(b.add(x, x), b.mul(y, y), axis=1)), [(3, 2, 4), (3, 5, 4)]),
    "pad_of_exp": (lambda b, x: b.add(b.pad(b.exp(x), b.constant(7.0), low=[1, 2], high=[0, 3]), 1.0), [(3, 4)]),
    "slice_reversed": (lambda b, x: b.neg(b.slice(x, starts=[0, 4], sizes=[3, 3], steps=[1, -2])), [(3, 5)]),
    "matmul_epilogue": (lambda b, x, y, z: b.relu(b.add(b.matmul(x, y), z)), [(3, 4), (4, 6), (6,)]),
    "sum_of_matmul": (lambda b, x, y: b.reduce_sum(b.matmul(x, y), axes=[1]), [(3, 4), (4, 6)]),
    "reduce_first_axis": (lambda b, x: b.reduce_sum(x, axes=[0]), [(50, 33)]),
    "reduce_first_and_last": (lambda b, x: b.reduce_max(b.neg(x), axes=[0, 2]), [(5, 6, 7)]),
    "argmax_of_sum": (lambda b, x, y: b.argmax(b.add(x, y), axis=1), [(5, 17), (5, 17)]),
    "pad_of_reduction": (
        lambda b, x: b.pad(b.reduce_sum(x, axes=[1]), b.constant(0.5), low=[2], high=[1]), [(4, 9)],
    ),
}  # fmt: skip


def square(b, x):
    return b.mul(x, x)


def softmax(b, x, axis):
    e = b.exp(b.sub(x, b.reduce_max(x, axes=[axis], keepdims=True)))
    return b.div(e, b.reduce_sum(e, axes=[axis], keepdims=True))


def layer_norm(b, x, w):
    centred = b.sub(x, b.reduce_mean(x, axes=[-1], keepdims=True))
    variance = b.reduce_mean(square(b, centred), axes=[-1], keepdims=True)
    return b.mul(b.mul(centred, b.rsqrt(b.add(variance, 1e-5))), w)


@pytest.mark.parametrize("name", sorted(GROUPS))
@pytest.mark.parametrize("symbolic", [False, True])
def test_group(name, symbolic):
    build, shapes = GROUPS[name]
    kinds = []
    for k, shape in enumerate(shapes):
        named = symbolic and k == 0 and not name.startswith(("reshape", "slice"))
        kinds.append(("f32", ["N" if named and axis == 0 else d for axis, d in enumerate(shape)]))
    if name in ("two_results", "argmax_of_sum") and symbolic:
        kinds[1] = kinds[0]
    if name == "transpose_add" and symbolic:
        kinds[1] = ("f32", [5, "N", 4])
    if name == "concat_of_sums" and symbolic:
        kinds[1] = ("f32", ["N", 5, 4])
    graph = graph_of(build, *kinds)
    check_graph(graph, *(f32(*shape) for shape in shapes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax_last", "layer_norm"])
def test_row_reductions_are_computed_once_a_row(name):
    build, shapes = GROUPS[name]
    text = lowered(build, *(("f32", list(shape)) for shape in shapes)).kernel.text
    assert text.count("ordered for") == 2, text


@pytest.mark.parametrize("shape", [(50, 33), (3, 512), (3, 513), (1, 1500), (0, 600), (40, 0)])
def test_columns_are_summed_side_by_side(shape):
    graph = graph_of(lambda b, x, y: b.exp(b.reduce_max(b.add(x, y), axes=[0])), ("f32", ["N", "M"]), ("f32", ["M"]))
    found = check_graph(graph, f32(*shape), f32(shape[1])) if shape[0] else None
    text = (found or lower_group(graph.nodes, graph.inputs, graph.outputs, "test")).kernel.text
    assert text.count("for lane in") == 3
    assert "y0: f32 both" in text
    for dtype in ("i8", "bool"):
        op = "reduce_sum" if dtype == "i8" else "reduce_any"
        graph = graph_of(lambda b, x, op=op: b.call(op, x, attrs={"axes": [1]}), (dtype, [2, "N", "M"]))
        check_graph(graph, RNG.integers(0, 2, (2, *shape)).astype(graph.inputs[0].dtype.numpy))


def test_products_of_matrices_side_by_side():
    inputs = ("f64", ["B", "M", 7]), ("f64", [7, "K"]), ("f64", ["K"])
    graph = graph_of(lambda b, x, y, z: b.add(b.matmul(x, y), z), *inputs)
    arrays = [RNG.standard_normal(s) for s in ((2, 5, 7), (7, 530), (530,))]
    found = check_graph(graph, *arrays, rtol=1e-12)
    assert "lane" in found.kernel.text


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (1, 300), (300, 1), (2, 1000)])
def test_edge_shapes_with_one_kernel(shape):
    graph = graph_of(lambda b, x: (b.exp(x), b.reduce_sum(x, axes=[1]), b.reduce_max(b.pad(x, b.constant(-1.0),
                     low=[0, 1], high=[0, 0]), axes=[1])), ("f32", ["N", "M"]))  # fmt: skip
    check_graph(graph, f32(*shape), rtol=1e-5, atol=1e-5)


def test_symbols_that_may_be_one_broadcast_at_run_time():
    graph = graph_of(lambda b, x, y: b.add(x, y), ("f32", ["N", 6]), ("f32", ["M", 6]))
    for n, m in ((4, 4), (1, 4), (4, 1), (1, 1)):
        check_graph(graph, f32(n, 6), f32(m, 6))


def test_results_may_replace_operands():
    graph = graph_of(lambda b, x, y: (b.sub(x, y), b.mul(x, y)), ("f32", [1000]), ("f32", [1000]))
    found = lower_group(graph.nodes, graph.inputs, graph.outputs, "test")
    assert set(found.inplace) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    from dhc.backends.cpu.objects import compile_kernel
    from dhc.backends.cpu.target import target
    from tests.backends.loop.harness import CACHE, _loaded

    code = compile_kernel(found.kernel, target(), CACHE)
    x, y = f32(1000), f32(1000)
    want = [x - y, x * y]
    kernel = _loaded(code.symbol, code.data)
    kernel.run(kernel.bind([x.ctypes.data, y.ctypes.data] * 2, [1000]))
    np.testing.assert_array_equal(x, want[0])
    np.testing.assert_array_equal(y, want[1])


def test_a_reduction_does_not_replace_its_operand():
    assert lowered(lambda b, x: softmax(b, x, 1), ("f32", [3, 4])).inplace == ()
    assert lowered(lambda b, x: b.transpose(x, perm=[1, 0]), ("f32", [4, 4])).inplace == ()


def test_sums_are_the_same_for_every_number_of_threads_and_accurate():
    graph = graph_of(lambda b, x: (b.reduce_sum(x, axes=[1]), b.reduce_sum(x)), ("f32", ["N", "M"]))
    x = RNG.uniform(0, 1, (3, 200_000)).astype(np.float32)
    found = lower_group(graph.nodes, graph.inputs, graph.outputs, "test")
    exact = [x.astype(np.float64).sum(1), x.astype(np.float64).sum()]
    before = None
    for nthreads in (1, 2, 7):
        status, results = run_kernel(found, [x], bindings(graph, [x]), graph.outputs, nthreads)
        assert status == 0
        for got, want in zip(results, exact):
            np.testing.assert_allclose(got, want, rtol=1e-5)
        assert before is None or before == [r.tobytes() for r in results]
        before = [r.tobytes() for r in results]


def test_what_is_not_a_loop_nest_is_refused():
    graph = graph_of(lambda b, x: b.cumsum(x, axis=0), ("f32", [4]))
    with pytest.raises(CompileError, match="cumsum"):
        lower_group(graph.nodes, graph.inputs, graph.outputs, "test")
    graph = Graph()
    b = Builder(graph)
    x = graph.input("x", "f32", [3])
    y = b.exp(x)
    with pytest.raises(CompileError, match="without having it as an input"):
        lower_group([y.producer], [], [y], "test")
