"""One way in which the random graph generator adds an op, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.random_graphs import Item, Maker


@dataclass(frozen=True)
class Rule:
    """One way to add an op; `name` is the op's name, or ``op:variant``; families are chosen with equal chances."""

    name: str
    apply: Callable[[Maker], object]
    family: str
    data_dependent: bool = False

    @property
    def op(self) -> str:
        return self.name.partition(":")[0]


RULES: list[Rule] = []


def rule(*names: str, data_dependent: bool = False) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Registers ``function(maker)``, or ``function(maker, op)`` for several ops of one form."""

    def enter(function: Callable[..., object]) -> Callable[..., object]:
        for name in names:
            if len(names) == 1:
                RULES.append(Rule(name, function, name, data_dependent))
            else:
                family = function.__name__
                if family == "smooth":  # many ops: several families, so that each still has a fair chance
                    family += str(len(RULES) % 4)
                RULES.append(Rule(name, lambda m, n=name: function(m, n), family, data_dependent))
        return function

    return enter


def least_grid(*items: Item) -> float | None:
    grids = [i.grid for i in items]
    return None if any(g is None for g in grids) else min(grids)  # type: ignore[type-var]
