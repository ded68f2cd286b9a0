"""Which loops a nest has: their order, and which adjacent ones become one loop."""

from __future__ import annotations

from collections.abc import Iterator

from dhc.backends.loop.expand import Definition, Expansion, Fold
from dhc.backends.loop.index import Linear, Ranges, variables
from dhc.ir import scalar as s
from dhc.ir.scalar import ScalarExpr
from dhc.ir.symbols import Dim

Loop = tuple[str, Dim]


class Nest:
    """The loops over the elements of results of one shape, and everything computed inside.

    Attributes:
        loops: variables and extents, outermost first.
        stores: (buffer, offset, name of the value) of each result.
    """

    def __init__(self, expansion: Expansion, loops: list[Loop], stores: list[tuple[int, ScalarExpr, s.Var]]) -> None:
        self.expansion = expansion
        self.loops = loops
        self.stores = stores
        self._names = self._reachable()
        self.folds = self._find_folds()

    def _reachable(self) -> list[str]:
        names: dict[str, None] = {}
        pending = [value.name for _, _, value in self.stores]
        while pending:
            name = pending.pop()
            definition = self.expansion.definitions.get(name)
            if definition is None or name in names:
                continue
            names[name] = None
            for e in _expressions(definition):
                pending += sorted(variables(e))
            pending += definition.eager
        return list(names)

    def _find_folds(self) -> list[Fold]:
        folds: dict[str, Fold] = {}
        for name in self._names:
            fold = self.expansion.definitions[name].fold
            if fold is not None:
                folds[fold.name] = fold
        return list(folds.values())

    def order(self, depends: dict[str, set[str]]) -> None:
        """Moves the loops that reductions depend on outwards, so that no reduction is computed more than once.

        Args:
            depends: for each reduction the loop variables it needs.
        """
        first: set[str] = set()
        for names in depends.values():
            first |= names
        own = {name for name, _ in self.loops}
        if first & own:
            self.loops = [x for x in self.loops if x[0] in first] + [x for x in self.loops if x[0] not in first]

    def collapse(self) -> None:
        """Merges adjacent loops wherever every access treats them as one."""
        self.loops = self._merge(self.loops)
        for fold in self.folds:
            fold.loops = self._merge(fold.loops)

    def _merge(self, loops: list[Loop]) -> list[Loop]:
        merged = list(loops)
        position = len(merged) - 2
        while position >= 0:
            (outer, outer_extent), (inner, inner_extent) = merged[position : position + 2]
            if self._mergeable(outer, inner, inner_extent):
                extent = outer_extent * inner_extent
                self._drop(outer)
                self.expansion.ranges.extents[inner] = extent
                merged[position : position + 2] = [(inner, extent)]
            position -= 1
        return merged

    def _mergeable(self, outer: str, inner: str, extent: Dim) -> bool:
        for form in self._forms():
            if form is None:
                continue
            weights = {term.name: c for term, c in form.terms if isinstance(term, s.Var)}
            if weights.get(outer, 0) != weights.get(inner, 0) * extent:
                return False
            for term, _ in form.terms:
                if not isinstance(term, s.Var) and {outer, inner} & variables(term):
                    return False
        return not {outer, inner} & self._pinned()

    def _forms(self) -> Iterator[Linear]:
        ranges = self.expansion.ranges
        for _, offset, _ in self.stores:
            yield ranges.linear(offset)
        for load in self.loads():
            yield ranges.linear(load.index[0])

    def loads(self) -> Iterator[s.Load]:
        """Everything that the nest reads."""
        for name in self._names:
            for e in _expressions(self.expansion.definitions[name]):
                yield from _loads(e)

    def _pinned(self) -> set[str]:
        """Variables that are used for something else than offsets."""
        pinned: set[str] = set()
        for name in self._names:
            for e in _expressions(self.expansion.definitions[name]):
                pinned |= _variables_outside_loads(e)
        return pinned

    def _drop(self, outer: str) -> None:
        """Removes a variable from all offsets: the one merged with it now counts for both."""
        ranges = self.expansion.ranges

        def rewrite(e: ScalarExpr) -> ScalarExpr:
            return s.transform(e, lambda x: s.Load(x.dtype, x.operand, (drop_term(ranges, x.index[0], outer),))
                               if isinstance(x, s.Load) else None)  # fmt: skip

        self.stores = [(b, drop_term(ranges, offset, outer), v) for b, offset, v in self.stores]
        seen: set[str] = set()
        for name in self._names:
            definition = self.expansion.definitions[name]
            definition.value = rewrite(definition.value)
            fold = definition.fold
            if fold is not None and fold.name not in seen:
                seen.add(fold.name)
                fold.init = [rewrite(e) for e in fold.init]
                fold.step = [rewrite(e) for e in fold.step]


def drop_term(ranges: Ranges, offset: ScalarExpr, name: str) -> ScalarExpr:
    """An offset without its term of one variable."""
    form = ranges.linear(offset)
    kept = tuple((t, c) for t, c in form.terms if not (isinstance(t, s.Var) and t.name == name))
    return Linear(form.constant, kept).expression() if len(kept) < len(form.terms) else offset


def _expressions(definition: Definition) -> list[ScalarExpr]:
    fold = definition.fold
    return [definition.value, *(() if fold is None else (*fold.init, *fold.step))]


def _loads(e: ScalarExpr) -> Iterator[s.Load]:
    if isinstance(e, s.Load):
        yield e
        return
    for child in s.children(e):
        yield from _loads(child)


def _variables_outside_loads(e: ScalarExpr) -> set[str]:
    if isinstance(e, s.Load):
        return set()
    if isinstance(e, s.Var):
        return {e.name}
    found: set[str] = set()
    for child in s.children(e):
        found |= _variables_outside_loads(child)
    return found
