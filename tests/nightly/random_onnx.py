"""Random valid ONNX models: nodes are drawn from a table and kept when ONNX's reference evaluator accepts them.

Every value of a growing model is known while it grows, so that nodes fit its types, shapes and domain. Nodes
without finite, moderate results are dropped, and so are nodes whose result jumps where their operands are: rounding
differs between correct programs.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FLOATS = ("float32", "float32", "float32", "float64")
BATCH = 3
"""What the symbolic first axis is bound to when the model grows."""


@dataclass
class RandomModel:
    """A model, its inputs and what ONNX's reference evaluator makes of them."""

    proto: onnx.ModelProto
    inputs: dict[str, np.ndarray]
    expected: list[np.ndarray]
    operators: list[str]


@dataclass
class Growing:
    """A model while it grows.

    Attributes:
        values: name -> array of everything a node may read.
        batched: names whose first axis is the symbolic one; everything else has fixed sizes.
    """

    rng: random.Random
    opset: int
    symbolic: bool
    values: dict[str, np.ndarray] = field(default_factory=dict)
    batched: set[str] = field(default_factory=set)
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    pending: list[Any] = field(default_factory=list)
    numbers: np.random.Generator = field(default_factory=np.random.default_rng)

    def pick(self, kinds: str = "f", low: int = 0, high: int = 9, test: Callable[[Any], bool] = lambda a: True) -> str:
        """The name of a value of a kind (letters of numpy) and rank; newer ones more often."""
        names = [n for n, a in self.values.items() if a.dtype.kind in kinds and low <= a.ndim <= high and test(a)]
        if not names:
            raise LookupError("nothing fits")
        return names[max(self.rng.randrange(len(names)), self.rng.randrange(len(names)))]

    def constant(self, array: Any) -> str:
        """The name of a new initializer; it is added when the node that asks for it is kept."""
        name = f"c{len(self.initializers) + len(self.pending)}"
        self.pending.append((name, np.asarray(array)))
        return name

    def normal(self, shape: Any, like: np.ndarray) -> str:
        return self.constant(self.numbers.standard_normal(tuple(shape)).astype(like.dtype))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def axis(self, array: np.ndarray, name: str = "") -> int:
        """An axis that is not the symbolic one, sometimes negative."""
        first = 1 if name in self.batched else 0
        if array.ndim <= first:
            raise LookupError("no axis")
        axis = self.rng.randrange(first, array.ndim)
        return axis - array.ndim if self.rng.random() < 0.3 else axis


def node(op: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> tuple[str, list[str], int, dict[str, Any]]:
    return op, inputs, outputs, attributes


def build(seed: int) -> RandomModel:
    """The model of a seed."""
    from tests.nightly.random_onnx_table import DISCONTINUOUS, OPERATORS

    rng = random.Random(seed)
    g = Growing(rng, rng.randint(13, 23), rng.random() < 0.3, numbers=np.random.default_rng(seed))
    inputs: dict[str, np.ndarray] = {}
    for i in range(rng.randint(1, 3)):
        dtype = rng.choice(FLOATS) if i == 0 else rng.choice((*FLOATS, "int64", "int32", "bool"))
        shape = [rng.randint(1, 5) for _ in range(rng.choice((1, 2, 3, 4, 4)))]
        if i and rng.random() < 0.5:
            shape = list(inputs["x0"].shape)
        if g.symbolic:
            shape[0] = BATCH
            g.batched.add(f"x{i}")
        inputs[f"x{i}"] = _values(g.numbers, shape, dtype)
    g.values.update(inputs)
    operators, wanted = [], rng.randint(3, 12)
    names = sorted(n for n, entry in OPERATORS.items() if entry.since <= g.opset and (entry.batched or not g.symbolic))
    for _ in range(wanted * 8):
        if len(g.nodes) >= wanted:
            break
        name = rng.choice(names)
        g.pending.clear()
        try:
            op, operands, outputs, attributes = OPERATORS[name].make(g)
        except LookupError:
            continue
        if _keep(g, op, operands, outputs, attributes, op in DISCONTINUOUS):
            operators.append(op)
    return _finish(g, inputs, operators)


def _values(numbers: np.random.Generator, shape: list[int], dtype: str) -> np.ndarray:
    if dtype == "bool":
        return numbers.random(shape) < 0.5
    if dtype.startswith("int"):
        return numbers.integers(-5, 6, shape).astype(dtype)
    return numbers.standard_normal(shape).astype(dtype)


def _info(name: str, array: np.ndarray, batched: bool = False) -> Any:
    shape: list[Any] = list(array.shape)
    if batched:
        shape[0] = "batch"
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any], opset: int) -> Any:
    graph = helper.make_graph(nodes, "random", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)


def _evaluate(g: Growing, made: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    outputs = [helper.make_empty_tensor_value_info(n) for n in made.output]
    model = _model([made], [_info(n, a) for n, a in feed.items()], outputs, [], g.opset)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(model).run(None, feed)
    except Exception:  # whatever the evaluator does not accept is no valid node
        return None
    return [np.asarray(a) for a in found]


def _checked(g: Growing, made: Any, feed: dict[str, np.ndarray], results: list[np.ndarray]) -> bool:
    """Whether ONNX's checker and shape inference agree with the evaluator."""
    constants = dict(g.pending)
    inputs = [_info(n, a, n in g.batched) for n, a in feed.items() if n not in constants]
    outputs = [_info(n, a) for n, a in zip(made.output, results)]
    stored = [numpy_helper.from_array(a, n) for n, a in constants.items() if n in feed]
    try:
        onnx.checker.check_model(_model([made], inputs, outputs, stored, g.opset), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _keep(g: Growing, op: str, operands: list[str], outputs: int, attributes: dict[str, Any], jumps: bool) -> bool:
    """Adds a node when its results are fine."""
    made = helper.make_node(op, operands, [f"v{len(g.nodes)}_{k}" for k in range(outputs)], **attributes)
    known = {**g.values, **dict(g.pending)}
    feed = {n: known[n] for n in operands if n}
    results = _evaluate(g, made, feed)
    if (
        results is None
        or not _checked(g, made, feed, results)
        or any(r.dtype.kind not in "fiub" or r.size > 4096 or r.size == 0 for r in results)
    ):
        return False
    for result in results:
        if result.dtype.kind == "f" and not (np.isfinite(result).all() and np.abs(result).max() < 1e3):
            return False
        if result.dtype.kind in "iu" and np.abs(result.astype(np.float64)).max() > 1e6:
            return False
    if jumps:
        for sign in (1, -1):
            near = {n: a + sign * (1e-4 * np.abs(a) + 1e-5).astype(a.dtype) if a.dtype.kind == "f" else a
                    for n, a in feed.items()}  # fmt: skip
            moved = _evaluate(g, made, near)
            if moved is None or any(
                m.shape != r.shape or (m.dtype.kind != "f" and (m != r).any())
                or (m.dtype.kind == "f" and not np.allclose(m, r, rtol=1e-2, atol=1e-3))
                for m, r in zip(moved, results)
            ):  # fmt: skip
                return False
    batched = any(n in g.batched for n in operands)
    if batched and any(r.ndim == 0 or r.shape[0] != BATCH for r in results):
        return False
    g.nodes.append(made)
    g.used.update(operands)
    g.initializers.extend(g.pending)
    for name, result in zip(made.output, results):
        g.values[name] = result
        if batched:
            g.batched.add(name)
    return True


def _finish(g: Growing, inputs: dict[str, np.ndarray], operators: list[str]) -> RandomModel:
    made = [o for n in g.nodes for o in n.output]
    leaves = [n for n in made if n not in g.used] or made[-1:]
    proto = _model(
        g.nodes,
        [_info(n, a, n in g.batched) for n, a in inputs.items()],
        [_info(n, g.values[n], n in g.batched) for n in leaves],
        [numpy_helper.from_array(a, n) for n, a in g.initializers if n in g.used],
        g.opset,
    )
    return RandomModel(proto, inputs, [g.values[n] for n in leaves], operators)
