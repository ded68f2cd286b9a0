"""A pass in twenty lines: divisions by powers of two become products. Shown as text before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import dhc
from dhc import ops
from dhc.ir import Builder, Node
from dhc.passes import Pass, PassResult, Refusal, apply_rules, rule, run_passes


@rule("divide_by_multiplying", "div")
def divide_by_multiplying(b: Builder, node: Node) -> object:
    """x / c becomes x * (1 / c) where that is exact: c is a power of two."""
    constant = node.operands[1].producer
    if constant is None or constant.op.name != "constant":
        return None
    mantissa, _ = np.frexp(constant.attrs["value"])
    if not np.all(np.abs(mantissa) == 0.5):
        return Refusal.at("divide_by_multiplying", node, "the divisor is no power of two: the product would round")
    return b.mul(node.operands[0], b.constant(1 / constant.attrs["value"], node.result.dtype))


@dataclass(frozen=True)
class MultiplyInstead(Pass):
    """Divisions by powers of two become products."""

    name: ClassVar[str] = "multiply_instead"

    def run(self, graph: dhc.Graph) -> PassResult:
        """Applies the rule everywhere."""
        return apply_rules(graph, [divide_by_multiplying])


def main() -> None:
    """Runs the pass on two divisions, one of which it must refuse."""
    graph = dhc.Graph("divisions")
    x = graph.input("x", "f32", ["N"])
    graph.output(ops.div(x, 8.0), ops.div(x, 3.0), names=["eighth", "third"])
    print(graph)
    (record,) = run_passes(graph, [MultiplyInstead()], verify=True)
    print(graph)
    print(record.result.statistics)
    for refusal in record.result.refusals:
        print(f"refused at {refusal.where}: {refusal.reason}")
    assert record.result.statistics == {"divide_by_multiplying": 1}
    assert len(record.result.refusals) == 1


if __name__ == "__main__":
    main()
