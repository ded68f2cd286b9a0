"""Which contractions `--precision bf16` and `fp16` leave in fp32 though a kernel could take them."""

from __future__ import annotations

from collections.abc import Iterable

from dhc.backends.cpu.integers import inside
from dhc.ir import symbols
from dhc.ir.graph import Node, Value
from dhc.ir.kinds import Contract

# Fewer products than these take a few microseconds in any precision.
_LEAST_PRODUCTS = 1 << 16


def may_round(contraction: Node, results: Iterable[Value]) -> bool:
    """Whether rounding the factors of a contraction to 16 bits is worth what it changes.

    It is not for a handful of products, such as a classifier's last layer over one feature vector. Nor for the
    transposed convolutions that write an image, with no other contraction behind them: the layers of a generator,
    whose every rounding is seen in its output.

    Args:
        contraction: a `matmul`, `conv` or `conv_transpose`.
        results: the values of the graph that its group computes.
    """
    products = _products(contraction)
    if products is not None and products < _LEAST_PRODUCTS:
        return False
    return contraction.op.name != "conv_transpose" or _reach_sums(results)


def _products(node: Node) -> int | None:
    """How many products there are; None where sizes are known to a run alone."""
    a, b = node.operands[:2]
    if node.op.name == "matmul":
        count = symbols.product(node.result.shape) * a.shape[-1]
    else:
        # For each position, of the output or for a transposed one of the input, every weight is used once.
        read = node.result if node.op.name == "conv" else a
        count = symbols.product(b.shape) * read.shape[0] * symbols.product(read.shape[2:])
    return count if isinstance(count, int) else None


def _reach_sums(results: Iterable[Value]) -> bool:
    """Whether a convolution or a matrix product, or what the compiler does not look into, follows."""
    waiting, seen = list(results), set[Node]()
    while waiting:
        for user in waiting.pop().users:
            if user in seen:
                continue
            seen.add(user)
            for node in inside(user):
                if node.regions or (isinstance(node.op.kind, Contract) and node.op.name != "conv_transpose"):
                    return True
            waiting.extend(user.results)
    return False
