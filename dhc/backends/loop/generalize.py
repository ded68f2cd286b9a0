"""Known sizes become symbols, so that layers which differ only in sizes share one kernel.

Sizes 0 and 1 stay: they decide about broadcasting and about which loops exist. Equal numbers become the same symbol.
Where a reshape splits or merges axes, the merged size becomes the product of the others, so that index arithmetic
between the two shapes still cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dhc.ir import symbols
from dhc.ir.graph import Node, Value
from dhc.ir.op import AttrView, Call
from dhc.ir.symbols import Dim, Shape
from dhc.ir.types import TensorType


class SizeSymbols:
    """Symbols that stand for known sizes.

    Attributes:
        values: the size behind each symbol.
    """

    def __init__(self, nodes: Iterable[Node], enabled: bool = True) -> None:
        self.values: dict[str, int] = {}
        self._enabled = enabled
        self._symbols: dict[int, Dim] = {}
        if enabled:
            for node in nodes:
                if node.op.name == "reshape":
                    self._align(node.operands[0].type.shape, node.result.type.shape)

    def dim(self, dim: Dim) -> Dim:
        """The symbol for a known size above 1; other dims as they are."""
        if not self._enabled or not isinstance(dim, int) or dim < 2:
            return dim
        found = self._symbols.get(dim)
        if found is None:
            name = f"size_{dim}"
            self.values[name] = dim
            found = self._symbols[dim] = symbols.sym(name)
        return found

    def shape(self, shape: Shape) -> Shape:
        """A shape in symbols."""
        return tuple(self.dim(d) for d in shape)

    def concrete(self, dim: Dim) -> Dim:
        """A dim with the sizes put back."""
        return symbols.substitute(dim, self.values)

    def call(self, node: Node) -> Call:
        """The call of a node with sizes in types and attributes replaced."""
        call = Call.of(node)
        attrs = dict(node.attrs)
        for spec in node.op.attrs:
            if spec.kind == "dims":
                attrs[spec.name] = tuple(self.dim(d) for d in attrs[spec.name])
            elif spec.kind == "dim":
                attrs[spec.name] = self.dim(attrs[spec.name])
        types = tuple(self._type(t) for t in call.types)
        results = tuple(self._type(t) for t in call.results)
        return Call(call.op, types, AttrView(attrs), results, call.regions, call.location)

    def _type(self, type_: TensorType) -> TensorType:
        return TensorType(type_.dtype, self.shape(type_.shape))

    def value_shape(self, value: Value) -> Shape:
        """The shape of a value in symbols."""
        return self.shape(value.type.shape)

    def _align(self, before: Shape, after: Shape) -> None:
        """Finds runs of axes with equal products; a single axis against several becomes their product."""
        left, right = [d for d in before if d != 1], [d for d in after if d != 1]
        while left and right:
            if not isinstance(left[0], int) or not isinstance(right[0], int):
                if left[0] != right[0]:
                    return
                left.pop(0), right.pop(0)
                continue
            one, other = [left.pop(0)], [right.pop(0)]
            while _product(one) != _product(other):
                shorter, rest = (one, left) if _product(one) < _product(other) else (other, right)
                if not rest or not isinstance(rest[0], int) or 0 in (*one, *other):
                    return
                shorter.append(rest.pop(0))
            for single, several in ((one, other), (other, one)):
                if len(single) == 1 and len(several) > 1 and single[0] not in self._symbols:
                    self._symbols[single[0]] = symbols.product(self.dim(d) for d in several)


def _product(dims: Sequence[int]) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total
