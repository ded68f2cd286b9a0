"""Typical and extreme calls of every registered op: one list that all tests of ops share.

``examples_for(op)`` gives concrete arrays and attributes for every element type that the op declares. Where the record
says enough (element-wise ops, reductions) the calls are derived from it, else they come from `OpDef.examples`, repeated
for the other element types. The reference of an op must accept every example. Numbers are fixed by the op's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dhc.errors import DhcError
from dhc.ir import dtypes as dt
from dhc.ir.builder import Builder
from dhc.ir.dtypes import DType
from dhc.ir.graph import Graph
from dhc.ir.kinds import Elementwise
from dhc.ir.op import OpDef

REGION_OPS = ("fused", "if", "loop", "scan")
"""Ops with nested graphs: arrays and attributes do not make a call of them; their own tests build them."""

HOST_OPS = (
    "sequence_insert", "sequence_erase", "sequence_at", "sequence_length", "concat_from_sequence",
    "optional_has_element", "optional_get_element",
)  # fmt: skip
"""Ops on sequences and optionals: arrays do not make a call of them; tests/ir/ops/test_host_values.py builds them."""


@dataclass(frozen=True)
class Example:
    """One call.

    Attributes:
        op: the op's record.
        label: unique among the examples of the op.
        arrays: operands; every one has exactly a dhc element type.
        attrs: attributes.
        dtypes: element types of the operands (i4 and i8 have the same arrays).
        finite: no NaN or infinity among the operands.
    """

    op: OpDef
    label: str
    arrays: tuple[np.ndarray, ...]
    attrs: dict[str, Any]
    dtypes: tuple[DType, ...]
    finite: bool = field(default=True)

    def __str__(self) -> str:
        return f"{self.op.name}-{self.label}"

    def graph(self) -> Graph:
        """A graph of the one call with static shapes; inputs x0, x1, ..."""
        graph = Graph(self.op.name)
        inputs = [graph.input(f"x{i}", d, a.shape) for i, (d, a) in enumerate(zip(self.dtypes, self.arrays))]
        results = Builder(graph).call(self.op, *inputs, attrs=self.attrs)
        graph.output(*(results if isinstance(results, tuple) else (results,)))
        return graph


# ---- numbers ---------------------------------------------------------------------------------------------------------

DOMAINS: dict[str, tuple[float, float]] = {
    "log": (0.1, 4), "log1p": (-0.8, 4), "sqrt": (0.1, 4), "rsqrt": (0.2, 4), "asin": (-0.9, 0.9), "acos": (-0.9, 0.9),
    "acosh": (1.2, 4), "atanh": (-0.9, 0.9), "tan": (-1.2, 1.2), "pow": (0.3, 2),
}  # fmt: skip
"""Where float operands of an op come from in plain examples; others: (-3, 3)."""
NONZERO = ("div", "mod", "fmod")
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-4, 100.0, float("inf"), float("-inf"), float("nan"), 3.5)


def generator(op: OpDef, salt: str = "") -> np.random.Generator:
    """Random numbers that depend on the op's name alone."""
    return np.random.default_rng(zlib.crc32(f"{op.name}/{salt}".encode()))


def numbers(op: OpDef, dtype: DType, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Plain numbers of a dtype in the op's domain."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.is_integer:
        low, high = (-5, 6) if dtype.kind == "i" else (0, 12)
        values = rng.integers(low, high, shape)
        if op.name in NONZERO:
            values = np.where(values == 0, 3, values)
        if dtype in dt.SUB_BYTE:
            values = np.clip(values, int(dtype.min), int(dtype.max))
        return np.asarray(values).astype(dtype.numpy)
    low, high = DOMAINS.get(op.name, (-3, 3))
    real = rng.uniform(low, high, shape)
    if dtype.kind == "c":
        return np.asarray(real + 1j * rng.uniform(-2, 2, shape)).astype(dtype.numpy)
    return np.asarray(real).astype(dtype.numpy)


def extreme_numbers(dtype: DType) -> np.ndarray:
    """Special values of floats; limits of integers."""
    if dtype.is_float:
        return np.array(SPECIAL).astype(dtype.numpy)
    return np.array([int(dtype.min), int(dtype.max), 1, 2, int(dtype.max) - 1], dtype.numpy)


# ---- derived from the record -----------------------------------------------------------------------------------------

BROADCASTS: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = (
    ("plain", ((2, 3), (2, 3), (2, 3))),
    ("broadcast", ((2, 1, 3), (4, 1), (3,))),
    ("scalar", ((), (), ())),
    ("scalar_and_vector", ((5,), (), (1,))),
    ("empty", ((0, 3), (1, 3), (3,))),
    ("one", ((1,), (1, 1), (1,))),
)
ATTRIBUTE_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "leaky_relu": [{"alpha": 0.2}], "elu": [{"alpha": 0.5}], "celu": [{"alpha": 2.0}],
    "selu": [{"alpha": 1.5, "gamma": 2.0}], "thresholded_relu": [{"alpha": -0.5}],
    "hard_sigmoid": [{"alpha": 0.3, "beta": 0.4}], "gelu": [{"approximate": "tanh"}],
    "is_inf": [{"negative": False}, {"positive": False}, {"negative": False, "positive": False}],
}  # fmt: skip


def _sweep(op: OpDef) -> list[DType]:
    """Element types of the operand that the others follow."""
    leader = next((o.same for o in op.operands if o.same), op.operands[0].name)
    spec = next(o for o in op.operands if o.name == leader)
    return [d for d in dt.ordered(spec.dtypes) if d.kind != "s"]


def _operand_dtypes(op: OpDef, dtype: DType) -> tuple[DType, ...]:
    leader = next((o.same for o in op.operands if o.same), op.operands[0].name)
    return tuple(dtype if o.name == leader or o.same == leader else dt.ordered(o.dtypes)[0] for o in op.operands)


def _elementwise(op: OpDef) -> Iterator[Example]:
    rng = generator(op)
    for dtype in _sweep(op):
        kinds = _operand_dtypes(op, dtype)
        for name, shapes in BROADCASTS:
            if name in ("one", "scalar") and dtype not in (dt.f32, dt.i64, dt.boolean):
                continue
            arrays = tuple(numbers(op, d, shape, rng) for d, shape in zip(kinds, shapes))
            yield Example(op, f"{dtype}-{name}", arrays, {}, kinds)
        if dtype.is_float or (dtype.is_integer and op.name not in NONZERO and dtype not in dt.SUB_BYTE):
            values = extreme_numbers(dtype)
            grids = np.meshgrid(*([values] * len(kinds)), indexing="ij") if len(kinds) < 3 else [values] * len(kinds)
            arrays = tuple(g.reshape(-1) if d == dtype else numbers(op, d, g.size, rng) for d, g in zip(kinds, grids))
            yield Example(op, f"{dtype}-extreme", arrays, {}, kinds, finite=not dtype.is_float)
        for number, attrs in enumerate(ATTRIBUTE_VARIANTS.get(op.name, [])):
            arrays = tuple(numbers(op, d, (2, 5), rng) for d in kinds)
            yield Example(op, f"{dtype}-attrs{number}", arrays, attrs, kinds)


def _reduction(op: OpDef) -> Iterator[Example]:
    rng = generator(op)
    variants: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("all", (2, 3, 4), {}),
        ("middle", (2, 3, 4), {"axes": (1,)}),
        ("outer_and_inner", (2, 3, 4), {"axes": (0, -1), "keepdims": True}),
        ("inner", (3, 37), {"axes": (-1,)}),
        ("scalar", (), {}),
        ("over_nothing", (2, 0, 3), {"axes": (1,)}),
        ("of_nothing", (0, 3), {"axes": (1,), "keepdims": True}),
        ("size_one", (1, 4), {"axes": (0,)}),
    ]
    for dtype in _sweep(op):
        for name, shape, attrs in variants:
            if name == "over_nothing" and op.name == "reduce_mean" and dtype.is_integer:
                continue  # an error: division by zero
            yield Example(op, f"{dtype}-{name}", (numbers(op, dtype, shape, rng),), attrs, (dtype,))
        if dtype.is_float:
            special = np.array([[1, np.nan, 2], [np.inf, 1, -3], [np.inf, -np.inf, 0], [-np.inf, -np.inf, -np.inf]])
            array = special.astype(dtype.numpy)
            yield Example(op, f"{dtype}-extreme", (array,), {"axes": (1,)}, (dtype,), finite=False)
        elif dtype.is_integer:
            array = np.stack([extreme_numbers(dtype)] * 2)
            yield Example(op, f"{dtype}-extreme", (array,), {"axes": (1,)}, (dtype,))


def _along_axis(op: OpDef) -> Iterator[Example]:
    """Ops with one axis: argmax, argmin, cumsum, cumprod."""
    rng = generator(op)
    flags = [a.name for a in op.attrs if a.kind == "bool"]
    for dtype in _sweep(op):
        for axis in (0, -1):
            for chosen in ({}, *({f: True} for f in flags), dict.fromkeys(flags, True)):
                array = numbers(op, dtype, (3, 4), rng)
                name = "_".join(["axis", str(axis % 2), *chosen])
                yield Example(op, f"{dtype}-{name}", (array,), {"axis": axis, **chosen}, (dtype,))
        yield Example(op, f"{dtype}-size_one", (numbers(op, dtype, (2, 1, 3), rng),), {"axis": 1}, (dtype,))
        yield Example(op, f"{dtype}-of_nothing", (numbers(op, dtype, (0, 3), rng),), {"axis": 1}, (dtype,))
        if dtype.is_float:
            special = np.array([[1, np.nan, 2, np.nan], [np.inf, 1, np.inf, 0], [-np.inf, -np.inf, -np.inf, -np.inf]])
            for chosen in ({}, {"last": True}) if "last" in flags else ({},):
                name = "_".join(["extreme", *chosen])
                array = special.astype(dtype.numpy)
                yield Example(op, f"{dtype}-{name}", (array,), {"axis": 1, **chosen}, (dtype,), finite=False)
        ties = np.array([[2, 1, 2], [0, 0, 0]]).astype(dtype.numpy)
        for chosen in ({}, {"last": True}) if "last" in flags else ():
            yield Example(op, "_".join([f"{dtype}-ties", *chosen]), (ties,), {"axis": 1, **chosen}, (dtype,))


# ---- from the record's own examples ----------------------------------------------------------------------------------


def _given(op: OpDef) -> Iterator[Example]:
    """The record's examples as they are, then with the leading element type replaced by each of the others."""
    assert op.examples is not None
    for number, (given, attrs) in enumerate(op.examples()):
        arrays = tuple(np.asarray(a) for a in given)
        own = tuple(dt.dtype(a.dtype) for a in arrays)
        base = Example(op, f"given{number}", arrays, dict(attrs), own, _finite(arrays))
        yield base
        if not own or own[0].kind == "s" or not op.operands[0].dtypes >= {own[0]}:
            continue
        for dtype in _sweep_first(op):
            if dtype == own[0]:
                continue
            kinds = tuple(
                dtype if d == own[0] and spec is not None and dtype in spec.dtypes else d
                for d, spec in ((d, op.operand_spec(i)) for i, d in enumerate(own))
            )
            converted = tuple(_converted(a, d, k) for a, d, k in zip(arrays, own, kinds))
            variant = Example(op, f"given{number}-{dtype}", converted, dict(attrs), kinds, base.finite)
            if _accepted(variant):
                yield variant


def _sweep_first(op: OpDef) -> list[DType]:
    return [d for d in dt.ordered(op.operands[0].dtypes) if d.kind != "s"]


def _finite(arrays: Sequence[np.ndarray]) -> bool:
    return all(bool(np.all(np.isfinite(a.astype(np.float64)))) for a in arrays if dt.dtype(a.dtype).is_float and a.size)


def _converted(array: np.ndarray, source: DType, target: DType) -> np.ndarray:
    if source == target:
        return array
    if target.kind == "b":
        return np.asarray(array != 0)
    if source.is_float and target.is_integer:
        steps = np.rint(np.nan_to_num(array.astype(np.float64), posinf=20, neginf=-20) * 3)
        return np.clip(steps, max(int(target.min), -100), min(int(target.max), 100)).astype(target.numpy)
    if target.is_integer and source.is_integer:
        return np.clip(array.astype(np.int64), int(target.min), min(int(target.max), 2**62)).astype(target.numpy)
    with np.errstate(over="ignore"):
        return array.astype(target.numpy)


def _accepted(example: Example) -> bool:
    """Whether the op takes this mix of element types at all (a type error is an answer, not a failure)."""
    try:
        example.graph()
    except (DhcError, ValueError):
        return False
    return True


# ---- conversions -----------------------------------------------------------------------------------------------------


def _casts(op: OpDef) -> Iterator[Example]:
    """Every pair of element types, on plain and extreme numbers, with and without saturation."""
    rng = generator(op)
    for source in dt.ordered(dt.FIXED):
        for target in dt.ordered(dt.FIXED):
            if source.kind == "c" and target.kind not in "cb":
                continue
            plain = numbers(op, source, (2, 5), rng)
            yield Example(op, f"{source}-to-{target}", (plain,), {"dtype": target}, (source,))
            if source.kind in "fiu" and source not in dt.SUB_BYTE:
                values = extreme_numbers(source)
                if source.is_float:
                    wide = np.array([2.0**31, -(2.0**31), 2.0**63, 255.5, 127.5, -128.9, 65504, 65520, 3e38])
                    with np.errstate(over="ignore"):  # large numbers become inf in half floats: meant
                        values = np.concatenate([values, wide.astype(source.numpy)])
                finite = not source.is_float
                yield Example(op, f"{source}-to-{target}-extreme", (values,), {"dtype": target}, (source,), finite)
            if source.is_float and target.is_integer:
                small = np.abs(plain)
                attrs = {"dtype": target, "saturate": False}
                yield Example(op, f"{source}-to-{target}-unsaturated", (small,), attrs, (source,))


def _bitcasts(op: OpDef) -> Iterator[Example]:
    rng = generator(op)
    for source in dt.ordered(op.operands[0].dtypes):
        for target in dt.ordered(op.operands[0].dtypes):
            if source.bits == target.bits:
                array = numbers(op, source, (3,), rng)
                yield Example(op, f"{source}-to-{target}", (array,), {"dtype": target}, (source,))


def _quantized(op: OpDef) -> Iterator[Example]:
    """Every stored type, with one scale and with one per channel."""
    rng = generator(op, "stored")
    quantizes = op.name == "quantize"
    for stored in dt.ordered(op.operands[2].dtypes):
        for real in (dt.f32, dt.f64, dt.f16):
            x = rng.uniform(-40, 40, (2, 3, 4)).astype(real.numpy) if quantizes else numbers(op, stored, (2, 3, 4), rng)
            first = real if quantizes else stored
            for name, shape in (("tensor", ()), ("channel", (3,))):
                scale = rng.uniform(0.1, 2, shape).astype(real.numpy)
                zero_point = np.asarray(rng.integers(0, 6, shape)).clip(0, min(int(stored.max), 5)).astype(stored.numpy)
                arrays = (x, np.asarray(scale), zero_point)
                yield Example(op, f"{stored}-{real}-{name}", arrays, {}, (first, real, stored))


SPECIAL_EXAMPLES: dict[str, Callable[[OpDef], Iterator[Example]]] = {
    "cast": _casts,
    "bitcast": _bitcasts,
    "quantize": _quantized,
    "dequantize": _quantized,
}


def examples_for(op: OpDef) -> list[Example]:
    """All examples of an op; empty for ops with nested graphs and for those that say nothing of themselves."""
    if op.name in REGION_OPS:
        return []
    attr_names = {a.name for a in op.attrs}
    plain = all(not o.variadic and not o.optional for o in op.operands) and bool(op.operands)
    required = [a.name for a in op.attrs if repr(a.default) == "REQUIRED" and a.kind != "symbol"]
    found: list[Example] = []
    if isinstance(op.kind, Elementwise) and plain and not required:
        found += _elementwise(op)
    elif attr_names == {"axes", "keepdims"} and len(op.operands) == 1:
        found += _reduction(op)
    elif op.name in ("argmax", "argmin", "cumsum", "cumprod"):
        found += _along_axis(op)
    elif op.name in SPECIAL_EXAMPLES:
        found += SPECIAL_EXAMPLES[op.name](op)
    if op.examples is not None:
        found += _given(op)
    labels = [e.label for e in found]
    assert len(set(labels)) == len(labels), f"{op.name}: labels repeat"
    return found
