"""Random typed graphs for differential tests and tests of passes.

    @given(random_graphs())
    def test_backend(case):
        wanted = case.graph.evaluate(**case.inputs())
        case.check(wanted, run(case.graph, case.inputs()))

Every value carries how large it can be and how far two correct implementations may be apart (`Item`). Values that any
order of evaluation computes exactly are tracked as such: sums and products of small multiples of a power of two.
Ops with jumps (floor, compare, argmax, casts to integers) take exact values only, so a difference is a defect and
never bad luck. The rules for the ops are in `random_ops.py`; ops that are not registered are left out.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dhc.ir import Builder, Graph, TensorType, Value, dtype, registry, sym, symbols
from dhc.ir.dtypes import DType
from dhc.ir.symbols import Dim
from dhc.ir.verifier import verify

PRECISION = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8, "c64": 24, "c128": 53}
LIMIT = {"f64": 1e9, "f32": 1e6, "f16": 2e4, "bf16": 1e6, "c64": 1e6, "c128": 1e9}
LARGEST = 5
"""The largest size that a symbol may get: error bounds hold up to it."""

FLOATS = ("f32", "f64", "f16", "bf16")
INTS = ("i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8")
DEFAULT_DTYPES = ("f32", "f32", "f32", "f64", "f16", "i64", "i32", "i8", "u8", "bool", "bf16", "i16", "u32", "c64")


@dataclass(frozen=True)
class Item:
    """A value that ops may use.

    Attributes:
        value: the value.
        bound: no element is larger in magnitude, for any sizes up to LARGEST.
        error: two correct implementations differ by no more; 0 means bit-equal up to the sign of zero.
        grid: every element is a multiple of this power of two (None: unknown).
        special: may hold NaN and infinities.
    """

    value: Value
    bound: float
    error: float = 0.0
    grid: float | None = None
    special: bool = False

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.value.shape

    @property
    def rank(self) -> int:
        return len(self.value.shape)

    @property
    def exact(self) -> bool:
        return self.error == 0


@dataclass(frozen=True)
class InputRange:
    """What an input is filled with: multiples of `step` between `low` and `high`."""

    low: float
    high: float
    step: float
    special: bool = False


@dataclass
class RandomGraph:
    """A graph with everything a test needs to run it.

    Attributes:
        graph: the graph; it verifies.
        sizes: sizes of the symbols that the generator drew.
        smallest: the smallest size of each symbol for which the graph is defined (0 or 1).
        ranges: how the inputs are filled.
        tolerances: allowed absolute difference of each output; 0 for exact ones.
        seed: of the inputs' elements.
        ops: names of the ops used.
    """

    graph: Graph
    sizes: dict[str, int]
    smallest: dict[str, int]
    ranges: dict[str, InputRange]
    tolerances: list[float]
    seed: int
    ops: list[str] = field(default_factory=list)

    def inputs(self, sizes: Mapping[str, int] | None = None, seed: int | None = None) -> dict[str, np.ndarray]:
        """Arrays for every input; other `sizes` of the symbols (within `smallest` and LARGEST) may be given."""
        bound = {**self.sizes, **(sizes or {})}
        arrays: dict[str, np.ndarray] = {}
        for value in self.graph.inputs:
            shape = tuple(symbols.evaluate(d, bound) for d in value.shape)
            rng = np.random.default_rng([self.seed if seed is None else seed, zlib.crc32(value.name.encode())])
            arrays[value.name] = fill(rng, value.dtype, shape, self.ranges[value.name])
        return arrays

    def check(self, wanted: Sequence[Any], found: Sequence[Any]) -> None:
        """Asserts that outputs agree: dtype, shape and values within the tolerances; NaN equals NaN."""
        assert len(found) == len(wanted)
        for name, tolerance, a, b in zip(self.graph.output_names, self.tolerances, wanted, found):
            a, b = np.asarray(a), np.asarray(b)
            assert b.dtype == a.dtype and b.shape == a.shape, f"{name}: {b.dtype}{b.shape}, not {a.dtype}{a.shape}"
            if a.dtype.kind in "iub":
                assert np.array_equal(a, b), f"{name} (exact): {a} {b}\n{self.graph}"
                continue
            wide = np.complex128 if a.dtype.kind == "c" else np.float64
            x, y = a.astype(wide), b.astype(wide)
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            with np.errstate(invalid="ignore"):
                near = same | (np.abs(x - y) <= tolerance)
            assert near.all(), (
                f"{name}: {int((~near).sum())} of {near.size} elements differ by more than {tolerance:.3g}, the first "
                f"at {tuple(int(i) for i in np.argwhere(~near)[0])}: {a[~near][:3]}, not {b[~near][:3]}\n{self.graph}"
            )

    def __repr__(self) -> str:
        return f"<random graph, sizes {self.sizes}, seed {self.seed}>\n{self.graph}"


def fill(rng: np.random.Generator, kind: DType, shape: tuple[int, ...], spread: InputRange) -> np.ndarray:
    """An array of multiples of a step, with special values if the range says so."""

    def steps() -> np.ndarray:
        low, high = math.ceil(spread.low / spread.step), math.floor(spread.high / spread.step)
        return rng.integers(low, high, size=shape, endpoint=True) * spread.step

    if kind.kind == "b":
        return np.asarray(rng.integers(0, 2, size=shape) > 0)
    if kind.kind == "c":
        return np.asarray(steps() + 1j * steps()).astype(kind.numpy)
    array = np.asarray(steps()).astype(kind.numpy)
    if spread.special and kind.kind == "f" and array.size:
        odd = np.array([np.nan, np.inf, -np.inf, -0.0]).astype(kind.numpy)
        where = rng.random(shape) < 0.2
        array = np.where(where, odd[rng.integers(0, 4, size=shape)], array).astype(kind.numpy)
    return array


class Maker:
    """Grows a graph: rules draw their choices and their operands here."""

    def __init__(self, draw: Callable[[Any], Any], dtypes: Sequence[str], symbolic: bool, special: bool) -> None:
        self.draw = draw
        self.graph = Graph("random")
        self.b = Builder(self.graph)
        self.pool: list[Item] = []
        self.terminal: list[Item] = []
        self.ranges: dict[str, InputRange] = {}
        self.dtypes = [d for d in dtypes if d != "bf16" or _has_ml_dtypes()]
        self.special = special
        self.sizes: dict[str, int] = {}
        self.smallest: dict[str, int] = {}
        self.palette: list[Dim] = [1, *(self.integer(1, 4) for _ in range(2)), self.choose([3, 2, 5, 0, 6])]
        if symbolic and self.flip():
            for name in ["N", "M"][: self.integer(1, 2)]:
                self.sizes[name] = self.integer(0, 4) if self.flip() else self.integer(1, 4)
                self.smallest[name] = 0
                self.palette.append(sym(name))
            self.palette.append(self.choose([sym("N") * 2, sym("N") + 1, sym("N")]))

    # ---- choices -------------------------------------------------------------------------------------------------

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def mixed(self, *position: int) -> int:
        """A number that depends on where it is drawn: hypothesis likes to repeat and to prefer small draws."""
        return zlib.crc32(repr((self.integer(0, 2**16), position)).encode())

    def flip(self) -> bool:
        return bool(self.draw(st.booleans()))

    def choose(self, options: Sequence[Any]) -> Any:
        return options[0] if len(options) == 1 else self.draw(st.sampled_from(list(options)))

    def subset(self, options: Sequence[int], at_least: int = 0) -> list[int]:
        chosen = [o for o in options if self.flip()]
        return chosen if len(chosen) >= at_least else list(options)[:at_least]

    def shape(self, least: int = 0, most: int = 4) -> tuple[Dim, ...]:
        return tuple(self.choose(self.palette) for _ in range(self.integer(least, most)))

    def some_dtype(self, kinds: str) -> str | None:
        found = [d for d in self.dtypes if dtype(d).kind in kinds]
        return self.choose(found) if found else None

    def has(self, *ops: str) -> bool:
        return all(registry.has(op) for op in ops)

    # ---- sizes ---------------------------------------------------------------------------------------------------

    def now(self, *dims: Dim) -> int:
        """Product of dims for the sizes drawn."""
        return math.prod(symbols.evaluate(d, self.sizes) for d in dims)

    def most(self, *dims: Dim) -> int:
        """Product of dims for the largest sizes."""
        return math.prod(symbols.evaluate(d, dict.fromkeys(self.sizes, LARGEST)) for d in dims)

    def not_empty(self, *dims: Dim) -> bool:
        """True when none of the dims is 0; remembers that their symbols must not be 0 then."""
        if any(symbols.evaluate(d, self.sizes) <= 0 for d in dims):
            return False
        for d in dims:
            if symbols.evaluate(d, dict.fromkeys(self.sizes, 0)) <= 0:
                self.smallest.update(dict.fromkeys(symbols.free_symbols(d), 1))
        return True

    # ---- values --------------------------------------------------------------------------------------------------

    def pick(
        self,
        kinds: str = "f",
        *,
        exact: bool = False,
        special: bool = False,
        rank: tuple[int, int] = (0, 9),
        dtype: str | None = None,
        where: Callable[[Item], bool] | None = None,
    ) -> Item | None:
        """A value out of the pool that fits, else a new one, else (special demands) None."""
        found = [
            item
            for item in reversed(self.pool)
            if item.dtype.kind in kinds
            and (item.exact or not exact)
            and (not item.special or special)
            and rank[0] <= item.rank <= rank[1]
            and (dtype is None or item.dtype.name == dtype)
            and (where is None or where(item))
        ]
        if not found and where is None:
            suitable = [d for d in self.dtypes if _kind(d) in kinds and dtype in (None, d)]
            if suitable:
                self.pool.append(self.fresh(self.choose(suitable), self.shape(rank[0], max(rank[0], min(rank[1], 4)))))
                return self.pool[-1]
        return self.choose(found) if found else None

    def static(self, item: Item) -> bool:
        return all(isinstance(d, int) for d in item.shape)

    def add(
        self, value: Value, bound: float, error: float = 0.0, grid: float | None = None, special: bool = False
    ) -> Item | None:
        """Enters a result into the pool, unless its elements are too large or too uncertain to be of use."""
        kind = value.dtype
        if kind.kind in "iu":
            item = Item(value, min(bound, float(kind.max) + 1), 0.0, 1.0)
        elif kind.kind == "b":
            item = Item(value, 1.0, 0.0, 1.0)
        else:
            bits = PRECISION[kind.name]
            epsilon = 2.0 ** (1 - bits)
            if error == 0 and grid is not None and grid >= 2.0**-12 and bound / grid <= 2.0**bits:
                item = Item(value, bound, 0.0, grid, special)
            else:
                item = Item(value, bound, error + 2 * epsilon * bound, None, special)
            if bound > LIMIT[kind.name] or item.error > min(2000 * epsilon, 0.3) * max(bound, 1.0):
                return None
        self.pool.append(item)
        return item

    def end(self, value: Value, error: float = 0.0) -> None:
        """Enters a result that only outputs may use (its size depends on data)."""
        self.terminal.append(Item(value, 0.0, error))

    def fresh(
        self,
        kind: str,
        shape: Iterable[Dim],
        low: float = -4,
        high: float = 4,
        step: float = 0.125,
        *,
        special: bool = False,
        constant: bool | None = None,
    ) -> Item:
        """A new graph input, or a constant where the shape allows it."""
        d = dtype(kind)
        shape = tuple(shape)
        if d.kind in "iub":
            low, high, step = max(math.ceil(low), math.floor(d.min)), min(math.floor(high), d.max), 1.0
        if d.kind == "u":
            low = max(low, 0)
        spread = InputRange(low, high, step, special)
        static = all(isinstance(n, int) for n in shape)
        if constant is None:
            constant = static and not special and self.integer(0, 3) == 0
        if constant and static:
            rng = np.random.default_rng(self.integer(0, 255))
            value = self.b.constant(fill(rng, d, tuple(int(n) for n in shape), spread), kind)  # type: ignore[arg-type]
        else:
            name = f"x{len(self.ranges)}"
            value = self.graph.add_input(name, TensorType(d, shape))
            self.ranges[name] = spread
        bound = max(abs(low), abs(high)) * (2 if d.kind == "c" else 1)
        return Item(value, bound, 0.0, step, special)

    def start(self) -> None:
        """The first inputs."""
        for _ in range(self.integer(1, 3)):
            kind = self.choose(self.dtypes)
            special = self.special and dtype(kind).kind == "f" and self.flip()
            self.pool.append(self.fresh(kind, self.shape(), special=special, constant=False))
        for name in sorted(set(self.sizes) - set(self.graph.symbols())):  # every symbol gets its size from an input
            self.pool.append(self.fresh("f32", (sym(name),), constant=False))

    # ---- shapes that broadcast -----------------------------------------------------------------------------------

    def broadcasts(self, a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
        """True when the shapes broadcast for every size of the symbols."""
        return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b)))

    def partner_shape(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """A shape that broadcasts with the given one."""
        kept = shape[self.integer(0, len(shape)) :] if self.flip() else shape
        kept = tuple(1 if self.integer(0, 3) == 0 else d for d in kept)
        if len(kept) == len(shape) < 4 and self.integer(0, 4) == 0:
            kept = (self.choose(self.palette), *kept)
        return kept

    def partner(self, item: Item, *, exact: bool = False, special: bool = False) -> Item:
        """Another value of the same dtype that broadcasts with `item`."""
        if self.flip():
            other = self.pick(
                item.dtype.kind, exact=exact, special=special, dtype=item.dtype.name,
                where=lambda o: self.broadcasts(o.shape, item.shape) and max(o.rank, item.rank) <= 5,
            )  # fmt: skip
            if other is not None:
                return other
        if item.dtype.kind in "fiu" and self.integer(0, 3) == 0:
            number = float(self.integer(1, 3))
            whole = item.dtype.kind != "f"
            return Item(self.b.constant(int(number) if whole else number, item.dtype), number, 0.0, 1.0)
        return self.fresh(item.dtype.name, self.partner_shape(item.shape))


def _kind(name: str) -> str:
    return dtype(name).kind


def _has_ml_dtypes() -> bool:
    from importlib.util import find_spec

    return find_spec("ml_dtypes") is not None


@st.composite
def random_graphs(
    draw: Any,
    *,
    max_nodes: int = 8,
    dtypes: Sequence[str] = DEFAULT_DTYPES,
    symbolic: bool = True,
    special: bool = False,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    data_dependent: bool = True,
) -> RandomGraph:
    """Random graphs with inputs.

    Args:
        draw: given by hypothesis.
        max_nodes: rules applied; most rules add one node, some add a few.
        dtypes: element types of the inputs and targets of casts.
        symbolic: also sizes that are symbols.
        special: some inputs hold NaN and infinities; only ops with a defined result take them.
        only: names of rules (ops) to choose from.
        without: names of rules not to choose.
        data_dependent: also ops whose result sizes depend on data (nonzero, unique, compress, nms).
    """
    from tests.support.random_ops import RULES

    maker = Maker(draw, dtypes, symbolic, special)
    maker.start()
    chosen = None if only is None else set(only)
    rules = [
        rule
        for rule in RULES
        if (chosen is None or rule.name in chosen)
        and rule.name not in set(without)
        and registry.has(rule.op)
        and (data_dependent or not rule.data_dependent)
    ]
    assert rules, "none of the ops asked for is registered"
    names: list[str] = []
    families: dict[str, list[Any]] = {}
    for rule in rules:
        families.setdefault(rule.family, []).append(rule)
    groups = list(families.values())
    for step in range(maker.integer(1, max_nodes)):
        for attempt in range(3):  # a rule that finds no operand leaves its place to another one
            before = len(maker.graph)
            group = groups[maker.mixed(step, attempt) % len(groups)]
            rule = group[maker.mixed(step, attempt) % len(group)]
            rule.apply(maker)
            if len(maker.graph) > before:
                names.append(rule.name)
                break
    return _finish(maker, names)


def _finish(maker: Maker, names: list[str]) -> RandomGraph:
    """Chooses outputs, mostly late values, sometimes one twice or an input."""
    outputs = list(maker.terminal[-2:])
    for _ in range(maker.integer(1, 3)):
        recent = list(reversed(maker.pool))
        outputs.append(maker.choose(recent[:4]) if maker.integer(0, 4) else maker.choose(recent))
    maker.graph.output(*(item.value for item in outputs))
    verify(maker.graph)
    return RandomGraph(
        graph=maker.graph,
        sizes=maker.sizes,
        smallest=maker.smallest,
        ranges=maker.ranges,
        tolerances=[item.error * 4 for item in outputs],
        seed=maker.integer(0, 2**16),
        ops=names,
    )
