"""The Python graph API: operators and methods of values mean what NumPy's mean, and errors name the caller's line."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

from dhc_runtime.errors import DhcError, ShapeError, TypeMismatchError, UsageError

import dhc
from dhc.ir import Graph, registry
from dhc.ir.verifier import verify

RNG = np.random.default_rng(1)
X = RNG.integers(-8, 9, (3, 4)).astype(np.float32) / 4
Y = RNG.integers(1, 9, (3, 4)).astype(np.float32) / 4
K = RNG.integers(-9, 9, (3, 4)).astype(np.int32)
J = np.maximum(np.abs(RNG.integers(-9, 9, (3, 4))), 1).astype(np.int32)


def run(function, *arrays, shapes=None):
    """Builds a graph with `function`, runs it on the arrays and compares with `function` on the arrays."""
    graph = Graph()
    values = [graph.input(f"x{i}", a.dtype, a.shape if shapes is None else shapes[i]) for i, a in enumerate(arrays)]
    graph.output(function(*values))
    verify(graph)
    return graph.evaluate(*arrays)[0]


def ones(shape, like):
    """An array of the dtype of an array or a value."""
    return np.ones(shape, getattr(like.dtype, "numpy", like.dtype))


BINARY = {
    "add": lambda a, b: a + b,
    "radd": lambda a, b: 2 + a,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: 2 - a,
    "mul": lambda a, b: a * b,
    "rmul": lambda a, b: 3 * a,
    "mod": lambda a, b: a % b,
    "rmod": lambda a, b: 7 % b,
    "floordiv": lambda a, b: a // b,
    "rfloordiv": lambda a, b: 7 // b,
    "floordiv number": lambda a, b: a // 2,
    "neg": lambda a, b: -a,
    "pos": lambda a, b: +a,
    "abs": lambda a, b: abs(a),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= 1,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a <= 1,
    "row": lambda a, b: a + b[0],
    "column": lambda a, b: a * b[:, :1],
    "sum": lambda a, b: a.sum(),
    "sum axis": lambda a, b: a.sum(axis=1),
    "sum axes": lambda a, b: a.sum(axis=(0, -1), keepdims=True),
    "sum nothing": lambda a, b: a.sum(axis=()),
    "max": lambda a, b: a.max(axis=-1),
    "min": lambda a, b: a.min(),
    "prod": lambda a, b: a.prod(axis=0),
    "any": lambda a, b: (a > 1).any(axis=0),
    "all": lambda a, b: (a > -9).all(),
    "and": lambda a, b: (a > 0) & (b > 1),
    "or": lambda a, b: (a > 0) | (b > 1),
    "xor": lambda a, b: (a > 0) ^ (b > 1),
    "not": lambda a, b: ~(a > 0),
    "reshape": lambda a, b: a.reshape(2, -1),
    "reshape tuple": lambda a, b: a.reshape((4, 3)),
    "transpose": lambda a, b: a.transpose(1, 0),
    "T": lambda a, b: a.T,
    "flatten": lambda a, b: a.flatten(),
    "squeeze": lambda a, b: a[:1].squeeze(0),
    "argmax": lambda a, b: a.argmax(axis=1),
    "array": lambda a, b: a + ones(4, a),
    "array first": lambda a, b: ones((3, 1), b) * b,
    "matmul": lambda a, b: a @ b.T,
    "astype": lambda a, b: a.astype("float64"),
    "matvec": lambda a, b: a @ b[0],
    "vecmat": lambda a, b: a[:, 0] @ b,
    "vecvec": lambda a, b: a[0] @ b[1],
    "matmul array": lambda a, b: a @ ones((4, 2), a),
    "array matmul": lambda a, b: ones((2, 3), a) @ a,
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("arrays", [(X, Y), (K, J)], ids=["f32", "i32"])
def test_like_numpy(name, arrays):
    function = BINARY[name]
    wanted, found = np.asarray(function(*arrays)), run(function, *arrays)
    assert found.shape == wanted.shape
    assert np.array_equal(found, wanted)


def test_floats_only():
    assert np.array_equal(run(lambda a, b: a / b, X, Y), X / Y)
    assert np.array_equal(run(lambda a: 1 / a, Y), 1 / Y)
    assert np.allclose(run(lambda a: a**0.5, Y), Y**0.5)
    assert np.allclose(run(lambda a: a.mean(axis=1), X), X.mean(axis=1))
    assert np.allclose(run(lambda a: 2.0**a, X), 2.0**X)


def test_ints_only():
    assert np.array_equal(run(lambda a, b: a & b, K, J), K & J)
    assert np.array_equal(run(lambda a: ~a, K), ~K)
    assert np.array_equal(run(lambda a: (a | 3) ^ 1, J), (J | 3) ^ 1)
    assert np.array_equal(run(lambda a: (a << 2) >> 1, J), (J << 2) >> 1)


C = np.arange(60, dtype=np.int64).reshape(3, 4, 5)
KEYS = [
    0,
    -1,
    (0, 1),
    (slice(None), 2),
    (..., 0),
    (0, ...),
    (slice(1, None), ..., -2),
    slice(1, 3),
    slice(None, None, 2),
    slice(None, None, -1),
    (slice(None), slice(3, 0, -1)),
    (slice(None), slice(-1, -9, -2)),
    (None, 0),
    (0, None),
    (..., None),
    slice(5, 9),
    slice(2, 1),
    slice(-2, None),
    (slice(None), slice(-100, 100, 3)),
    ...,
    (),
    (1, 2, 3),
    (None, slice(None), None, 1, ..., 0, None),
    (slice(None), np.array([0, -1, 2])),
    ([[2, 0]],),
    (slice(0, 2), [1, 1], 0),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_indexing(key):
    wanted = C[key]
    for shapes in (None, [("N", 4, "M")]):
        found = run(lambda x: x[key], C, shapes=shapes)
        assert found.shape == wanted.shape and np.array_equal(found, wanted)


@pytest.mark.parametrize(
    "key", [slice(1, 3), slice(-2, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1)]
)
@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_slices_of_symbolic_sizes(key, size):
    x = np.arange(size, dtype=np.float32)
    assert np.array_equal(run(lambda v: v[key], x, shapes=[("N",)]), x[key])


def test_index_by_value():
    positions = np.array([2, 0])
    assert np.array_equal(run(lambda x, i: x[:, i], C, positions), C[:, positions])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (3, "out of range for axis 0"),
        ((0, 0, 0, 0), "4 indices"),
        ((..., ...), "one ellipsis"),
        (slice(0, 1, 0), "step of a slice"),
        ("a", "cannot index with"),
        (1.5, "cannot index with"),
        (([0], [0]), "one array of positions"),
        (slice("a", None), "bounds of a slice"),
        (np.array([True, False, True]), "cannot index"),
    ],
    ids=repr,
)
def test_bad_indices(key, message):
    graph = Graph()
    x = graph.input("x", "i64", (3, 4, 5))
    with pytest.raises(DhcError, match=message):
        x[key]


def test_symbolic_reshape():
    graph = Graph()
    x = graph.input("x", "f32", ("N", 4, 6))
    assert str(x.reshape("N", -1).type) == "f32[N, 24]"
    assert str(x.reshape(-1, 24).type) == "f32[N, 24]"
    assert str(x.reshape("N*2", 12).type) == "f32[2*N, 12]"


def test_errors_name_the_line_of_the_caller():
    graph = Graph()
    x, y = graph.input("x", "f32", (2, 3)), graph.input("y", "f32", (4,))
    here = Path(__file__).name
    line = inspect.currentframe().f_lineno  # type: ignore[union-attr]
    mistakes = [
        lambda: x + y,
        lambda: x @ y,
        lambda: dhc.ops.concat(x, y, axis=0),
        lambda: x[5],
        lambda: x.reshape(5),
        lambda: x.transpose(0, 0),
        lambda: x.sum(axis=7),
        lambda: x.squeeze(0),
        lambda: x.astype("i32") + x,
        lambda: bool(x > 0),
    ]
    for offset, mistake in enumerate(mistakes):
        with pytest.raises(DhcError, match=f"{here}:{line + 2 + offset}"):
            mistake()
    assert len(graph) <= 5 and not graph.outputs  # nothing half-built remains but casts and comparisons


def test_numbers_take_the_dtype_of_their_peer():
    graph = Graph()
    x = graph.input("x", "i8", (2,))
    half = graph.input("h", "f16", (2,))
    assert (x + 1).dtype == x.dtype and (half * 2).dtype == half.dtype and (half + 0.1).dtype == half.dtype
    for bad in (1.5, 300, -129):
        with pytest.raises(TypeMismatchError, match="i8"):
            x + bad
    with pytest.raises(TypeMismatchError):
        x + np.float32(1)
    with pytest.raises(TypeError):
        x + "a"
    with pytest.raises(TypeError):
        x + None


def test_identity_stays_equality():
    graph = Graph()
    x, y = graph.input("x", "f32", (2,)), graph.input("y", "f32", (2,))
    assert x == x and x != y and x in [y, x] and {x: 1}[x] == 1
    with pytest.raises(TypeError):
        iter(x)
    with pytest.raises(TypeMismatchError, match="truth value"):
        if x > 0:
            pass


def test_values_of_two_graphs():
    a, b = Graph().input("x", "f32", ()), Graph().input("x", "f32", ())
    with pytest.raises(DhcError, match="different graphs"):
        a + b


def test_ops_module():
    graph = Graph()
    x = graph.input("x", "f32", ("N", 3))
    assert str(dhc.ops.concat(x, x, axis=1).type) == str(dhc.ops.concat([x, x], axis=-1).type) == "f32[N, 6]"
    assert dhc.ops.relu(x, name="r").name == "r"
    assert dhc.ops.constant(graph, 1.5).dtype.name == "f32" and dhc.ops.constant(x, [1, 2], "i8").shape == (2,)
    assert str(dhc.ops.iota(graph, shape=(2, "N"), axis=0).type) == "i64[2, N]"
    with pytest.raises(UsageError, match="give it first"):
        dhc.ops.iota(shape=(2,))
    with pytest.raises(AttributeError, match="did you mean softmax"):
        dhc.ops.softmaxx  # noqa: B018
    with pytest.raises(DhcError, match="no attribute 'axes'"):
        dhc.ops.softmax(x, axes=1)
    assert set(dir(dhc.ops)) >= {"relu", "conv", "matmul"}


def test_every_op_has_a_function_with_signature_and_doc():
    for op in registry.all_ops():
        name = op.name + "_" if op.name == "if" else op.name
        function = getattr(dhc.ops, name)
        if op.name == "constant":
            continue  # written by hand: the array's dtype need not be said
        assert function.__doc__.startswith(op.doc)
        parameters = inspect.signature(function).parameters
        for attr in op.attrs:
            assert attr.name in parameters or attr.name + "_" in parameters
        assert function is getattr(dhc.ops, name)


def test_texts():
    graph = Graph("net")
    x = graph.input("x", "f32", ("N", 2))
    y = x + 1
    graph.output(y, names=["out"])
    assert repr(x) == "<%x: f32[N, 2]>"
    assert repr(y) == "<value: f32[N, 2]>"
    assert repr(y.producer) == "<%_ = add(%x, %_): f32[N, 2]>"
    assert repr(graph) == "<Graph 'net' (x: f32[N, 2]) -> (out: f32[N, 2]), 2 nodes>"
    assert repr(x.type) == "<f32[N, 2]>"
    assert str(graph).startswith('graph @net(%x: f32[N, 2]) -> (%1: f32[N, 2] as "out") {\n')
    with pytest.raises(ShapeError):
        x.reshape(-1, 0)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8"])
def test_floor_division_of_integers_wraps_nowhere_on_the_way(dtype):
    limits = np.iinfo(dtype)
    wanted = {*range(-7, 8), limits.min, limits.min + 1, limits.max}
    numbers = np.array(sorted(n for n in wanted if limits.min <= n <= limits.max), dtype)
    a, b = np.meshgrid(numbers, numbers[numbers != 0])
    fits = ~((a == limits.min) & (b == (-1 if limits.min else 0)))
    a, b = a[fits], b[fits]
    np.testing.assert_array_equal(run(lambda x, y: x // y, a, b), a // b)
