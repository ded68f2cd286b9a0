"""The record of an op: one declaration gives type inference, reference, gradient, kind, cost and documentation.

Parser, printer, verifier, Python builder method, docs table and test parametrisation derive from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Union

import numpy as np

from dhc_runtime.errors import DhcError, ShapeError, TypeMismatchError

from dhc.ir import symbols
from dhc.ir.dtypes import ANY, DType, ordered
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.kinds import Kind
from dhc.ir.location import UNKNOWN, Location
from dhc.ir.symbols import Dim, SymExpr
from dhc.ir.types import TensorType, Type, substitute

if TYPE_CHECKING:
    from dhc.ir.graph import Graph, Node, Value


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()

ATTR_KINDS = (
    "int", "float", "bool", "str", "ints", "floats", "strs", "dim", "dims", "dtype", "tensor", "symbol", "type",
    "types",
)  # fmt: skip


@dataclass(frozen=True)
class Attr:
    """Declaration of an attribute.

    Attributes:
        name: its name.
        kind: one of ATTR_KINDS. `dim`/`dims` may be symbolic; `tensor` is a NumPy array; `symbol` names a size that
            the node defines at run time (filled in by the graph when not given).
        default: value when not given; REQUIRED when there is none.
        doc: one line.
        choices: allowed values of a `str`.
    """

    name: str
    kind: str
    default: Any = REQUIRED
    doc: str = ""
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.kind in ATTR_KINDS, self.kind


@dataclass(frozen=True)
class Operand:
    """Declaration of an operand.

    Attributes:
        name: its name.
        dtypes: element types it takes.
        same: name of an earlier operand whose element type it must share.
        variadic: stands for any number of operands; only the last may be.
        optional: may be left out; only trailing operands may be.
        sequence: also takes sequence and optional values (host ops).
    """

    name: str
    dtypes: frozenset[DType] = ANY
    same: str | None = None
    variadic: bool = False
    optional: bool = False
    sequence: bool = False


@dataclass(frozen=True)
class NotDifferentiable:
    """The reason why an op has no gradient (integer results, selections of positions, ...)."""

    reason: str


@dataclass(frozen=True)
class Limitation:
    """Something that is not supported, with the reason that messages and the support matrix show."""

    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Cost:
    """Work of one call: arithmetic operations and bytes moved, both may be symbolic."""

    flops: Dim
    bytes: Dim


Gradient = Union[Callable[..., "Sequence[Value | None]"], NotDifferentiable]


class AttrView:
    """Attributes with dot access."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, name: str) -> Any:
        return self._values[name]


@dataclass
class Call:
    """One application of an op, as its functions see it.

    Attributes:
        op: the op's record.
        types: operand types.
        attrs: attributes with dot access.
        results: result types (empty during inference).
        regions: nested graphs.
        location: origin.
        run: in the interpreter, runs a nested graph on arrays.
        constraints: sizes that inference takes as equal but cannot prove: (left, right, what). Backends check them
            when the symbols get their values, before anything runs.
    """

    op: OpDef
    types: tuple[Any, ...]
    attrs: Any
    results: tuple[Any, ...] = ()
    regions: tuple[Graph, ...] = ()
    location: Location = UNKNOWN
    run: Callable[[Graph, Sequence[Any]], list[Any]] | None = field(default=None, repr=False)
    constraints: list[tuple[Dim, Dim, str]] = field(default_factory=list, repr=False)

    def require(self, left: Dim, right: Dim, what: str) -> None:
        """Demands that two sizes are equal: at once when both are known, else when they get their values.

        Raises:
            ShapeError: they are known and differ.
        """
        difference = left - right
        if difference == 0:
            return
        if isinstance(difference, int):
            self.fail(f"{what}: {symbols.format_dim(left)} is not {symbols.format_dim(right)}")
        self.constraints.append((left, right, what))

    @classmethod
    def of(cls, node: Node) -> Call:
        """The call that `node` makes."""
        return cls(
            node.op,
            node.types,
            AttrView(node.attrs),
            tuple(r.type for r in node.results),
            node.regions,
            node.location,
        )

    def bind(self, bindings: Mapping[str, int]) -> Call:
        """The same call with symbols replaced by sizes, in types and attributes."""
        attrs = {n: _bind_attr(v, bindings) for n, v in self.attrs._values.items()}
        types = tuple(substitute(t, bindings) for t in self.types)
        results = tuple(substitute(t, bindings) for t in self.results)
        return Call(self.op, types, AttrView(attrs), results, self.regions, self.location, self.run)

    def fail(self, message: str, hint: str | None = None) -> NoReturn:
        """Raises a ShapeError about this call."""
        operands = ", ".join(str(t) for t in self.types)
        raise ShapeError(f"{self.op.name}({operands}): {message}", where=str(self.location), hint=hint)

    def fail_type(self, message: str, hint: str | None = None) -> NoReturn:
        """Raises a TypeMismatchError about this call."""
        operands = ", ".join(str(t) for t in self.types)
        raise TypeMismatchError(f"{self.op.name}({operands}): {message}", where=str(self.location), hint=hint)

    def axis(self, axis: int, rank: int | None = None) -> int:
        """A non-negative axis from a possibly negative one; `rank` defaults to the first operand's."""
        n = self.types[0].rank if rank is None else rank
        if not -n <= axis < n:
            self.fail(f"axis {axis} is out of range for rank {n}")
        return axis % n

    def axes(self, axes: Sequence[int], rank: int | None = None) -> tuple[int, ...]:
        """Distinct non-negative axes, ascending; none given means all."""
        n = self.types[0].rank if rank is None else rank
        found = [self.axis(a, n) for a in axes] if axes else list(range(n))
        if len(set(found)) != len(found):
            self.fail(f"axes {tuple(axes)} repeat")
        return tuple(sorted(found))


def _bind_attr(value: Any, bindings: Mapping[str, int]) -> Any:
    if isinstance(value, SymExpr):
        return symbols.substitute(value, bindings)
    if isinstance(value, tuple):
        return tuple(_bind_attr(v, bindings) for v in value)
    if isinstance(value, TensorType):
        return substitute(value, bindings)
    return value


@dataclass(frozen=True, eq=False)
class OpDef:
    """Everything dhc knows about an op.

    Attributes:
        name: name in the text form and of the builder method.
        doc: one line; the first sentence of its documentation.
        operands: what it takes.
        attrs: its attributes.
        infer: ``call -> result types``; raises through ``call.fail``.
        reference: ``(call, *arrays) -> array or tuple of arrays``, obvious NumPy; the meaning of the op. The call's
            dims are bound to integers. Results must have exactly the inferred dtype and shape.
        kind: what it is for backends.
        grad: ``(builder, node, *cotangents) -> one Value or None per operand``, or NotDifferentiable. Composite ops
            may leave it None: their parts are differentiated.
        cost: ``call -> Cost``; by default one operation per result element and every tensor read or written once.
        since: version of dhc's op set that introduced this meaning.
        commutative: operands may be swapped.
        pure: no effect but its results, so unused nodes may go and equal nodes merge.
        examples: ``() -> [(arrays, attrs), ...]`` typical calls that tests and docs use; None: made from the record.
        source: the paper, ONNX operator or ECVL function it follows.
    """

    name: str
    doc: str
    operands: tuple[Operand, ...]
    infer: Callable[[Call], Sequence[Type]]
    reference: Callable[..., Any]
    kind: Kind
    attrs: tuple[Attr, ...] = ()
    grad: Gradient | None = None
    cost: Callable[[Call], Cost] | None = None
    since: int = 1
    commutative: bool = False
    pure: bool = True
    examples: Callable[[], Sequence[tuple[Sequence[np.ndarray], dict[str, Any]]]] | None = None
    source: str = ""

    def attr(self, name: str) -> Attr | None:
        """The declaration of an attribute."""
        return next((a for a in self.attrs if a.name == name), None)

    def check_attr(self, name: str, value: Any, location: Location = UNKNOWN) -> Any:
        """Normalises one attribute value.

        Raises:
            DhcError: the op has no such attribute or the value does not fit.
        """
        spec = self.attr(name)
        if spec is None:
            known = ", ".join(a.name for a in self.attrs) or "none"
            raise DhcError(f"{self.name} has no attribute {name!r} (it has: {known})", where=str(location))
        try:
            return _normalise(spec, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DhcError(f"attribute {name!r} of {self.name}: {error}", where=str(location)) from None

    def check_attrs(self, given: Mapping[str, Any], location: Location = UNKNOWN) -> dict[str, Any]:
        """Normalises all attributes and fills in defaults.

        Raises:
            DhcError: an attribute is unknown, missing or of the wrong kind.
        """
        checked = {name: self.check_attr(name, value, location) for name, value in given.items()}
        full: dict[str, Any] = {}
        for spec in self.attrs:
            if spec.name in checked:
                full[spec.name] = checked[spec.name]
            elif spec.kind == "symbol":
                full[spec.name] = ""
            elif spec.default is REQUIRED:
                raise DhcError(f"{self.name} needs the attribute {spec.name!r}", where=str(location))
            else:
                full[spec.name] = spec.default
        return full

    def operand_spec(self, index: int) -> Operand | None:
        """The declaration that operand number `index` falls under."""
        if index < len(self.operands):
            return self.operands[index]
        if self.operands and self.operands[-1].variadic:
            return self.operands[-1]
        return None

    def cost_of(self, node: Node) -> Cost:
        """Work of a node."""
        call = Call.of(node)
        return self.cost(call) if self.cost is not None else default_cost(call)

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def default_cost(call: Call) -> Cost:
    """One operation per result element; every tensor read or written once."""
    tensors = [t for t in (*call.types, *call.results) if isinstance(t, TensorType)]
    flops: Dim = 0
    moved: Dim = 0
    for result in call.results:
        if isinstance(result, TensorType):
            flops = flops + result.numel
    for tensor in tensors:
        moved = moved + tensor.nbytes
    return Cost(flops, moved)


def _integer(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"expected an integer, got {value!r}")
    return int(value)


def _dim(value: Any) -> Dim:
    if isinstance(value, SymExpr):
        return value
    if isinstance(value, str):
        return symbols.parse_dim(value)
    return _integer(value)


def _number(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _listed(value: Any) -> list[Any]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise TypeError(f"expected a list, got {value!r}")
    return list(value)


def _normalise(spec: Attr, value: Any) -> Any:
    kind = spec.kind
    if value is None and spec.default is None:
        return None  # "not given" may be written out
    if kind == "int":
        return _integer(value)
    if kind == "float":
        return _number(value)
    if kind == "bool":
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"expected True or False, got {value!r}")
        return bool(value)
    if kind in ("str", "symbol"):
        text = _text(value)
        if spec.choices and text not in spec.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(spec.choices)}")
        return text
    if kind == "ints":
        return tuple(_integer(v) for v in _listed(value))
    if kind == "floats":
        return tuple(_number(v) for v in _listed(value))
    if kind == "strs":
        return tuple(_text(v) for v in _listed(value))
    if kind == "dim":
        return _dim(value)
    if kind == "dims":
        return tuple(_dim(v) for v in _listed(value))
    if kind == "dtype":
        return as_dtype(value)
    if kind == "tensor":
        array = np.asarray(value)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        return array
    if kind == "types":
        return tuple(_listed(value))
    return value


def constraints_of(node: Node) -> list[tuple[Dim, Dim, str]]:
    """Size equalities that the node needs and inference could not prove."""
    call = Call(node.op, node.types, AttrView(node.attrs), (), node.regions, node.location)
    node.op.infer(call)
    return call.constraints


def infer_types(
    op: OpDef, types: Sequence[Type], attrs: Mapping[str, Any], regions: Sequence[Graph], location: Location
) -> tuple[Type, ...]:
    """Checks operand types against the op's declaration and infers the result types.

    Raises:
        TypeMismatchError: wrong number of operands or wrong element types.
        ShapeError: shapes or attributes do not fit.
    """
    call = Call(op, tuple(types), AttrView(attrs), (), tuple(regions), location)
    required = sum(1 for o in op.operands if not o.optional and not o.variadic)
    open_ended = bool(op.operands) and op.operands[-1].variadic
    if len(types) < required or (not open_ended and len(types) > len(op.operands)):
        call.fail_type(f"takes {required}{' or more' if open_ended else ''} operands, got {len(types)}")
    by_name: dict[str, DType] = {}
    for index, type_ in enumerate(types):
        spec = op.operand_spec(index)
        assert spec is not None
        if not isinstance(type_, TensorType):
            if not spec.sequence:
                call.fail_type(f"operand {spec.name!r} is a tensor, got {type_}")
            continue
        if type_.dtype not in spec.dtypes:
            allowed = ", ".join(d.name for d in ordered(spec.dtypes))
            call.fail_type(f"operand {spec.name!r} is one of {allowed}, got {type_.dtype}")
        expected = by_name.get(spec.same) if spec.same else by_name.get(spec.name)
        if expected is not None and type_.dtype != expected and (spec.same or not spec.variadic):
            call.fail_type(
                f"operand {spec.name!r} must be {expected} like {spec.same or spec.name!r}, got {type_.dtype}",
                hint="insert a cast",
            )
        by_name.setdefault(spec.name, type_.dtype)
    return tuple(op.infer(call))
