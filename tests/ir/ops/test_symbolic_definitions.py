"""Definitions made for symbolic sizes: one definition, bound to several sizes, gives what the reference gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dhc.ir import scalar as s
from dhc.ir import symbols
from dhc.ir.dtypes import i64
from dhc.ir.kinds import Contract, Reduce, ReduceSpec
from dhc.ir.op import Call
from tests.ir.scalar_evaluation import evaluate_kind
from tests.ir.single_op import graph_of, run_dhc


def _bound(spec: ReduceSpec, sizes: dict[str, int]) -> ReduceSpec:
    def number(e: s.ScalarExpr) -> s.ScalarExpr | None:
        return s.const(symbols.evaluate(e.dim, sizes), i64) if isinstance(e, s.Size) else None

    def all_numbers(parts: tuple[s.ScalarExpr, ...]) -> tuple[s.ScalarExpr, ...]:
        return tuple(s.transform(e, number) for e in parts)

    return ReduceSpec(
        domain=tuple(symbols.evaluate(d, sizes) for d in spec.domain),
        init=lambda *a: all_numbers(spec.init(*a)),
        step=lambda *a: all_numbers(spec.step(*a)),
        finish=lambda *a: all_numbers(spec.finish(*a)),
    )


POOL = {"kernel": (3, 2), "strides": (2, 1), "pads_low": (1, 1), "pads_high": (2, 0), "dilations": (1, 2)}
RESIZE = {"coordinate": "half_pixel"}
CALLS: list[tuple[str, list[tuple[int, ...]], dict[str, Any]]] = [
    ("conv", [(4, 2, 3, 2), (4,)], {"groups": 2, "strides": (2, 1), "pads_low": (1, 0), "pads_high": (1, 2)}),
    ("conv_transpose", [(4, 2, 3, 2)], {"groups": 2, "strides": (2, 3), "pads_low": (1, 0), "output_padding": (1, 0)}),
    ("max_pool", [], POOL),
    ("max_pool_indices", [], POOL),
    ("avg_pool", [], POOL),
    ("avg_pool", [], {**POOL, "count_include_pad": True, "extra_high": (1, 0)}),
    ("lp_pool", [], {**POOL, "p": 3}),
    *(
        ("resize", [], {**RESIZE, "shape": ("N", 4, "2*H", "W+1"), "mode": mode, "antialias": antialias})
        for mode in ("nearest", "linear", "cubic")
        for antialias in ((False,) if mode == "nearest" else (False, True))
    ),
    ("resize", [], {"coordinate": "align_corners", "shape": ("N", 4, "H-3", "W"), "mode": "linear"}),
    ("resize", [], {"coordinate": "pytorch_half_pixel", "shape": ("N", 4, "H-3", "W//2"), "mode": "cubic",
                    "antialias": True, "exclude_outside": True}),
    ("resize", [], {"coordinate": "half_pixel_symmetric", "shape": ("N", 4, "2*H", "W//2"), "mode": "linear",
                    "scales": (1.0, 1.0, 2.0, 0.5)}),
    ("resize", [], {"coordinate": "tf_crop_and_resize", "shape": ("N", 4, "H", "W-2"), "mode": "linear",
                    "roi": (0, 0, 0.1, 0.2, 1, 1, 1.2, 0.7), "extrapolation": 5.0}),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CALLS)), ids=[f"{c[0]}-{i}" for i, c in enumerate(CALLS)])
def test_one_definition_serves_all_sizes(number: int) -> None:
    op, others, attrs = CALLS[number]
    rng = np.random.default_rng(number)
    for n, h, w in [(2, 4, 5), (1, 7, 4), (0, 5, 6)]:
        arrays = [rng.standard_normal((n, 4, h, w)), *(rng.standard_normal(shape) for shape in others)]
        (node,) = graph_of(op, arrays, attrs, ("N", 4, "H", "W")).nodes
        symbolic = Call.of(node)
        sizes = {"N": n, "H": h, "W": w}
        assert isinstance(node.op.kind, (Reduce, Contract))
        spec = _bound(node.op.kind.spec(symbolic), sizes)
        call = symbolic.bind(sizes)
        call.op = dataclasses.replace(node.op, kind=Reduce(lambda _, spec=spec: spec))  # type: ignore[misc]
        known = {k: tuple(symbols.evaluate(symbols.parse_dim(str(d)), sizes) for d in v) if k == "shape" else v
                 for k, v in attrs.items()}  # fmt: skip
        with np.errstate(all="ignore"):  # both branches of a selection are computed here
            results = evaluate_kind(call, arrays)
        for actual, expected in zip(results, run_dhc(op, arrays, **known)):
            assert actual.dtype == expected.dtype
            np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
