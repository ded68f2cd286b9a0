"""Non-maximum suppression of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dhc.ir import symbols
from dhc.ir.dtypes import f32, i32, i64
from dhc.ir.inference import require_equal, require_rank
from dhc.ir.kinds import Opaque
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.ops.select import new_dim
from dhc.ir.registry import register
from dhc.ir.types import TensorType


def nms_kernel(boxes, scores, max_output, iou, score, out, count, corners, dropped, batches, classes, n, center):  # type: ignore[no-untyped-def]
    """For each batch and class: takes the best box left, drops those that overlap it too much, and so on."""
    found = 0
    for batch in range(batches):
        # Corners ordered by size, so that any two opposite corners describe a box. Stored, hence rounded to f32.
        for i in range(n):
            for axis in range(2):
                if center != 0:
                    middle = boxes[(batch * n + i) * 4 + axis]
                    half = boxes[(batch * n + i) * 4 + 2 + axis] / 2
                    corners[i * 4 + axis] = middle - half
                    corners[i * 4 + 2 + axis] = middle + half
                else:
                    a = boxes[(batch * n + i) * 4 + axis]
                    c = boxes[(batch * n + i) * 4 + 2 + axis]
                    corners[i * 4 + axis] = min(a, c)
                    corners[i * 4 + 2 + axis] = max(a, c)
        for kind in range(classes):
            base = (batch * classes + kind) * n
            for i in range(n):
                dropped[i] = 0 if scores[base + i] > score[0] else 1
            taken = 0
            while taken < max_output[0]:
                best = -1
                for i in range(n):
                    if dropped[i] == 0 and (best < 0 or scores[base + i] > scores[base + best]):
                        best = i
                if best < 0:
                    break
                dropped[best] = 1
                out[found * 3] = batch
                out[found * 3 + 1] = kind
                out[found * 3 + 2] = best
                found = found + 1
                taken = taken + 1
                best_area = corners[best * 4 + 2] - corners[best * 4]
                best_area = best_area * (corners[best * 4 + 3] - corners[best * 4 + 1])
                for i in range(n):
                    if dropped[i] == 0:
                        height = min(corners[i * 4 + 2], corners[best * 4 + 2]) - max(corners[i * 4], corners[best * 4])
                        width = min(corners[i * 4 + 3], corners[best * 4 + 3]) - max(
                            corners[i * 4 + 1], corners[best * 4 + 1]
                        )
                        if height > 0 and width > 0:
                            area = (corners[i * 4 + 2] - corners[i * 4]) * (corners[i * 4 + 3] - corners[i * 4 + 1])
                            common = height * width
                            union = best_area + area - common
                            if union > 0 and common / union > iou[0]:
                                dropped[i] = 1
    count[0] = found
    return 0


def _nms_type(call: Call) -> list[TensorType]:
    boxes, scores = call.types[:2]
    require_rank(call, 0, 3)
    require_rank(call, 1, 3)
    for scalar in (2, 3, 4):
        require_rank(call, scalar, 0)
    require_equal(call, boxes.shape[0], scores.shape[0], "batches")
    require_equal(call, boxes.shape[1], scores.shape[2], "boxes")
    call.require(boxes.shape[2], 4, "coordinates of a box")
    return [TensorType(i64, (new_dim(call), 3))]


def _overlap(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Intersection over union of two boxes given by their lower and upper corners."""
    common = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (common <= 0).any():
        return np.float32(0)
    inner = np.prod(common)
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner
    return np.float32(inner / union) if union > 0 else np.float32(0)


def _nms_reference(
    call: Call, boxes: np.ndarray, scores: np.ndarray, max_output: np.ndarray, iou: np.ndarray, score: np.ndarray
) -> np.ndarray:
    first, second = boxes[..., :2], boxes[..., 2:]
    if call.attrs.center_point_box:
        low, high = first - second / 2, first + second / 2
    else:
        low, high = np.minimum(first, second), np.maximum(first, second)
    corners = np.concatenate([low, high], axis=-1).astype(np.float32)
    chosen: list[tuple[int, int, int]] = []
    for batch, kind in np.ndindex(*scores.shape[:2]):
        candidates = [int(i) for i in np.argsort(-scores[batch, kind], kind="stable") if scores[batch, kind, i] > score]
        kept: list[int] = []
        for i in candidates:
            if len(kept) < max_output and all(_overlap(corners[batch, i], corners[batch, k]) <= iou for k in kept):
                kept.append(i)
        chosen += [(batch, kind, i) for i in kept]
    return np.array(chosen, np.int64).reshape(-1, 3)


def _nms_args(call: Call) -> Sequence[Any]:
    batches, classes, n = call.types[1].shape
    return [batches, classes, n, call.attrs.center_point_box]


def _example(center: int, max_output: int, score: float) -> tuple[list[np.ndarray], dict[str, Any]]:
    boxes = np.array(
        [[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, -0.1, 1, 0.9], [0, 10, 1, 11], [0, 10.1, 1, 11.1], [1, 101, 0, 100]]],
        np.float32,
    )
    scores = np.array([[[0.9, 0.75, 0.6, 0.95, 0.5, 0.3], [0.1, 0.2, 0.2, 0.0, 0.9, 0.9]]], np.float32)
    scalars: list[np.ndarray] = [np.array(max_output, np.int64), np.array(0.5, np.float32), np.array(score, np.float32)]
    return [boxes, scores, *scalars], {"center_point_box": center}


register(
    OpDef(
        name="nms",
        doc="Keeps the best boxes of each class: a box that overlaps a better one by more than `iou` goes.",
        operands=(
            Operand("boxes", frozenset({f32})),
            Operand("scores", frozenset({f32})),
            Operand("max_output", frozenset({i64})),
            Operand("iou", frozenset({f32})),
            Operand("score", frozenset({f32})),
        ),
        attrs=(
            Attr("center_point_box", "int", 0, "0: two opposite corners; 1: centre and size"),
            Attr("count", "symbol", doc="the number of boxes kept"),
        ),
        infer=_nms_type,
        reference=_nms_reference,
        kind=Opaque(
            nms_kernel,
            args=_nms_args,
            scratch=lambda call: [(f32, (call.types[0].shape[1], 4)), (i32, (call.types[0].shape[1],))],
            bounds=lambda call: [(symbols.product(call.types[1].shape), 3)],
            count=True,
            flat=True,
        ),
        grad=NotDifferentiable("the result is positions"),
        examples=lambda: [_example(0, 3, 0.0), _example(0, 30, 0.4), _example(1, 2, 0.0), _example(0, 0, 0.0)],
        source="ONNX NonMaxSuppression",
    )
)
