"""Every scalar function on every type it takes, with the values where machines and languages disagree."""

import warnings

import numpy as np
import pytest

from dhc.backends.loop.lower import lower_group
from dhc.ir import scalar as s
from dhc.ir.dtypes import ALL, boolean, dtype
from dhc.ir.graph import Graph
from dhc.ir.kinds import Elementwise, Map
from dhc.ir.op import OpDef, Operand
from dhc.ir.types import TensorType
from tests.backends.loop.harness import compare, run_kernel

INTS = ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"]
FLOATS = ["f32", "f64"]
NAN, INF = float("nan"), float("inf")


def values(name):
    kind = dtype(name)
    if kind.is_integer:
        edge = [0, 1, 2, 3, 7, 100, kind.max, kind.max - 1, kind.min, kind.min + 1]
        if kind.kind == "i":
            edge += [-1, -2, -3, -7, -100]
        return np.array(edge, kind.numpy)
    edge = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1.0, -1.0, 3.7, -3.7, 127.5, 128.0, 255.9, 256.0, -129.0, 1e10, -1e10,
            2.0**31, 2.0**63, 2.0**64, -(2.0**63), 3e38, INF, -INF, NAN, 1e-40, 65504.0]  # fmt: skip
    return np.array(edge, kind.numpy)


def pairs(name):
    x = values(name)
    a, b = np.meshgrid(x, x)
    return a.ravel().copy(), b.ravel().copy()


def run(expr, result, *arrays, names):
    """Compiles an elementwise definition and runs it."""
    op = OpDef(
        name="probe", doc="", operands=tuple(Operand(f"x{i}") for i in range(len(arrays))),
        infer=lambda call: [TensorType(dtype(result), call.types[0].shape)],
        reference=lambda call, *xs: xs[0], kind=Elementwise(lambda call, *xs: expr(*xs)),
    )  # fmt: skip
    graph = Graph()
    inputs = [graph.input(f"x{i}", n, ["N"]) for i, n in enumerate(names)]
    graph.output(graph.create(op, inputs).result)
    lowered = lower_group(graph.nodes, graph.inputs, graph.outputs, "probe")
    status, (found,) = run_kernel(lowered, arrays, {"N": len(arrays[0])}, graph.outputs)
    return status, found


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trunc_divide(a, b):
    return np.array([wrap(int(abs(int(x)) // abs(int(y))) * (1 if (x < 0) == (y < 0) else -1), a.dtype)
                     for x, y in zip(a, b)], a.dtype)  # fmt: skip


def wrap(value, kind):
    info = np.iinfo(kind)
    return (value - info.min) % (1 << info.bits) + info.min


INTEGER = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "floordiv": np.floor_divide, "mod": np.mod, "fmod": np.fmod, "div": trunc_divide,
}  # fmt: skip


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("function", sorted(INTEGER))
def test_integer_binary(function, name):
    a, b = pairs(name)
    if function in ("floordiv", "mod", "fmod", "div"):
        a, b = a[b != 0], b[b != 0]
    status, found = run(lambda x, y: s.binary(function, x, y), name, a, b, names=[name, name])
    assert status == 0
    np.testing.assert_array_equal(found, INTEGER[function](a, b))


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("function", ["div", "floordiv", "mod", "fmod"])
def test_integer_division_by_zero_stops_the_kernel(function, name):
    a = np.array([1, 2, 3], dtype(name).numpy)
    status, _ = run(lambda x, y: s.binary(function, x, y), name, a, np.array([1, 0, 1], a.dtype), names=[name, name])
    assert status == 2


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("function", ["shl", "shr"])
def test_shifts_beyond_the_width(function, name):
    kind = dtype(name)
    a, count = np.meshgrid(values(name), np.array([0, 1, kind.bits - 1, kind.bits, kind.bits + 1, 100], kind.numpy))
    a, count = a.ravel().copy(), count.ravel().copy()
    _, found = run(lambda x, y: s.binary(function, x, y), name, a, count, names=[name, name])
    expected = []
    for x, c in zip(a, count):
        x, c = int(x), int(c)
        expected.append(wrap(x << c, a.dtype) if function == "shl" else x >> min(c, kind.bits))
    np.testing.assert_array_equal(found, np.array(expected, a.dtype))


@pytest.mark.parametrize("name", INTS)
def test_integer_power_wraps_around(name):
    a, b = pairs(name)
    a, b = a[(b >= 0) & (b <= 100)], b[(b >= 0) & (b <= 100)]
    _, found = run(lambda x, y: s.binary("pow", x, y), name, a, b, names=[name, name])
    expected = [wrap(pow(int(x), int(y)), a.dtype) for x, y in zip(a, b)]
    np.testing.assert_array_equal(found, np.array(expected, a.dtype))


FLOAT = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum, "max": np.maximum,
         "mod": np.mod, "fmod": np.fmod, "floordiv": np.floor_divide, "pow": np.power}  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("function", sorted(FLOAT))
def test_float_binary(function, name):
    a, b = pairs(name)
    _, found = run(lambda x, y: s.binary(function, x, y), name, a, b, names=[name, name])
    compare(found, FLOAT[function](a, b), 2e-7 if function == "pow" else 0, 0)


@pytest.mark.parametrize("name", INTS + FLOATS)
@pytest.mark.parametrize("function", s.COMPARE)
def test_comparisons(function, name):
    a, b = pairs(name)
    compared = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
                "ge": np.greater_equal}[function](a, b)  # fmt: skip
    _, found = run(lambda x, y: s.compare(function, x, y), "bool", a, b, names=[name, name])
    np.testing.assert_array_equal(found, compared)


UNARY = {"neg": np.negative, "abs": np.abs, "sign": np.sign}


@pytest.mark.parametrize("name", INTS + FLOATS)
@pytest.mark.parametrize("function", sorted(UNARY))
def test_unary_on_numbers(function, name):
    a = values(name)
    _, found = run(lambda x: s.unary(function, x), name, a, names=[name])
    np.testing.assert_array_equal(found, UNARY[function](a))


@pytest.mark.parametrize("name", INTS)
def test_bitwise_not(name):
    a = values(name)
    _, found = run(lambda x: s.unary("not", x), name, a, names=[name])
    np.testing.assert_array_equal(found, ~a)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("function", ["floor", "ceil", "trunc", "rint", "sqrt", "isnan", "isinf"])
def test_exact_float_functions(function, name):
    a = values(name)
    _, found = run(lambda x: s.unary(function, x), "bool" if function[:2] == "is" else name, a, names=[name])
    np.testing.assert_array_equal(found, getattr(np, function)(a))


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", INTS)
def test_saturating_cast_of_floats(source, target):
    a = values(source)
    kind = dtype(target)
    _, found = run(lambda x: s.cast(x, kind, saturate=True), target, a, names=[source])
    expected = [0 if x != x else kind.max if x >= float(kind.max) + (kind.bits < 25) else
                kind.min if x <= kind.min else int(x) for x in a.astype(np.float64)]  # fmt: skip
    np.testing.assert_array_equal(found, np.array(expected, kind.numpy))


@pytest.mark.parametrize("source", INTS)
@pytest.mark.parametrize("target", INTS)
@pytest.mark.parametrize("saturate", [False, True])
def test_casts_between_integers(source, target, saturate):
    a = values(source)
    kind = dtype(target)
    _, found = run(lambda x: s.cast(x, kind, saturate), target, a, names=[source])
    clamped = np.array([min(max(int(x), kind.min), kind.max) for x in a], kind.numpy)
    expected = clamped if saturate else a.astype(kind.numpy)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("target", ["f16", "bf16"])
@pytest.mark.parametrize("source", ["f32", "f64"])
def test_rounding_to_half(source, target):
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 1 << 32, 20000, dtype=np.uint32)
    a = np.concatenate([bits.view(np.float32), (rng.standard_normal(5000) * 1e-5).astype(np.float32), values("f32")])
    if source == "f64":  # halfway cases that a detour through f32 would round twice
        a = np.concatenate([a.astype(np.float64), 1 + 2.0**-11 + 2.0 ** -np.arange(24.0, 50)])
    a = a[a == a]
    kind = dtype(target)
    _, found = run(lambda x: s.cast(x, kind), target, a, names=[source])
    expected = a.astype(kind.numpy)
    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))
    _, back = run(lambda x: s.cast(x, dtype("f32")), "f32", expected, names=[target])
    np.testing.assert_array_equal(back, expected.astype(np.float32))


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("str", "i4", "u4", "c64", "c128", "f8e8m0")])
def test_cast_to_bool_is_not_zero(name):
    """f8e8m0 has no zero."""
    a = np.array([0, 1, 0, 2], np.float32).astype(dtype(name).numpy)
    _, found = run(lambda x: s.cast(x, boolean), "bool", a, names=[name])
    np.testing.assert_array_equal(found, [False, True, False, True])


ELEMENTARY = {"exp": (np.exp, -110, 95), "log": (np.log, 0, 1e38), "tanh": (np.tanh, -12, 12),
              "expm1": (np.expm1, -20, 90), "log1p": (np.log1p, -1, 1e30)}  # fmt: skip


def ulps(found, exact):
    """Distance from the exact value in units of the last place of f32."""
    near = exact.astype(np.float32)
    spacing = np.maximum(np.abs(np.spacing(near)).astype(np.float64), 2.0**-149)
    same = (found == near) | (np.isnan(found) & np.isnan(near))
    return np.where(same, 0, np.abs(found.astype(np.float64) - exact) / spacing)


def f32_samples(low, high):
    """Bit patterns spread over all magnitudes, and a uniform range."""
    rng = np.random.default_rng(7)
    spread = rng.integers(0, 1 << 32, 400_000, dtype=np.uint32).view(np.float32)
    dense = rng.uniform(low, min(high, 100), 400_000).astype(np.float32)
    near_one = (1 + rng.standard_normal(50_000) * 1e-2).astype(np.float32)
    return np.concatenate([spread, dense, near_one, values("f32")])


@pytest.mark.parametrize("function", sorted(ELEMENTARY))
def test_polynomials_are_within_two_ulps(function):
    reference, low, high = ELEMENTARY[function]
    x = f32_samples(low, high)
    _, found = run(lambda v: s.unary(function, v), "f32", x, names=["f32"])
    exact = reference(x.astype(np.float64))
    error = ulps(found, exact)
    worst = int(np.nanargmax(error))
    assert not np.isnan(error).any(), (x[np.isnan(error)][:5], found[np.isnan(error)][:5])
    assert error[worst] <= 2, (x[worst], found[worst], exact[worst], error[worst])


def test_erf_is_within_two_ulps():
    import math

    x = np.concatenate([f32_samples(-5, 5)[::8], np.linspace(-4.5, 4.5, 20001, dtype=np.float32)])
    _, found = run(lambda v: s.unary("erf", v), "f32", x, names=["f32"])
    exact = np.array([math.erf(float(v)) for v in x])
    error = ulps(found, exact)
    worst = int(np.nanargmax(error))
    assert error[worst] <= 2, (x[worst], found[worst], exact[worst], error[worst])


def test_signs_of_zero_survive():
    x = np.array([0.0, -0.0], np.float32)
    for function in ("tanh", "erf", "expm1", "log1p"):
        _, found = run(lambda v, f=function: s.unary(f, v), "f32", x, names=["f32"])
        assert np.signbit(found).tolist() == [False, True], function


def _probe(element, shape, out="f32", **inputs):
    """A map op over given inputs."""
    op = OpDef(
        name="probe", doc="", operands=tuple(Operand(n) for n in inputs),
        infer=lambda call: [TensorType(dtype(out), shape)], reference=lambda call, *xs: xs[0],
        kind=Map(lambda call, index, load: element(index, load)),
    )  # fmt: skip
    graph = Graph()
    values_ = [graph.input(n, a.dtype, a.shape) for n, a in inputs.items()]
    graph.output(graph.create(op, values_).result)
    lowered = lower_group(graph.nodes, graph.inputs, graph.outputs, "probe")
    return run_kernel(lowered, list(inputs.values()), {}, graph.outputs)


def test_checked_indices():
    x = np.arange(5, dtype=np.float32)

    def element(index, load):
        return load(0, [s.Checked(load(1, index), s.const(5, s.i64))])

    status, (found,) = _probe(element, (4,), x=x, at=np.array([0, 4, -1, -5]))
    assert status == 0
    np.testing.assert_array_equal(found, [0, 4, 4, 0])
    for wrong in (5, -6, 2**62, -(2**63)):
        assert _probe(element, (4,), x=x, at=np.array([0, wrong, 0, 0]))[0] == 1


def test_branch_not_taken_reads_nothing():
    """The operand is one element; reading at 2^40 would end the process."""

    def element(index, load):
        far = s.select(index[0] > 99, load(0, [index[0] * (1 << 40)]), 7.0)
        return s.select(index[0] < 1, load(0, [index[0]]), far)

    status, (found,) = _probe(element, (8,), x=np.ones(1, np.float32))
    assert status == 0
    np.testing.assert_array_equal(found, [1, *[7] * 7])
