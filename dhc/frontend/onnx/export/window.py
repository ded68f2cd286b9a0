"""Pooling and resizing."""

from __future__ import annotations

from typing import Any

import numpy as np

from dhc.frontend.onnx.export.contraction import pad_first
from dhc.frontend.onnx.export.registry import exports
from dhc.frontend.onnx.export.writer import GraphWriter
from dhc.frontend.onnx.families.resize import scaled
from dhc.ir.graph import Node


def _attributes(node: Node, pads: list[int]) -> dict[str, Any]:
    a = node.attrs
    return {
        "kernel_shape": list(a["kernel"]),
        "strides": list(a["strides"]) or None,
        "dilations": list(a["dilations"]) or None,
        "pads": pads or None,
    }


def _static_pads(w: GraphWriter, node: Node) -> list[int]:
    pads = [*node.attrs["pads_low"], *node.attrs["pads_high"]]
    if any(not isinstance(p, int) for p in pads):
        w.unsupported("pads that depend on sizes are attributes in ONNX")
    return pads


@exports("max_pool")
def max_pool(w: GraphWriter, node: Node) -> Any:
    """MaxPool; pads that depend on sizes are laid on first."""
    (x,) = w.operands(node)
    dtype = node.result.dtype
    lowest = w.constant(-np.inf if dtype.is_float else dtype.min, dtype)
    if dtype.is_integer and dtype.bits <= 32 and not w.takes("MaxPool", dtype):  # f64 holds them exactly
        x, lowest = w.cast(x, "f64"), w.constant(float(dtype.min), "f64")
    x, pads = pad_first(w, x, node.attrs["pads_low"], node.attrs["pads_high"], lowest)
    made = w.node("MaxPool", [x], **_attributes(node, pads))
    return made if w.takes("MaxPool", dtype) or not dtype.is_integer else w.cast(made, dtype)


@exports("max_pool_indices")
def max_pool_indices(w: GraphWriter, node: Node) -> Any:
    """MaxPool with its second output."""
    return w.node("MaxPool", w.operands(node), outputs=2, **_attributes(node, _static_pads(w, node)))


@exports("avg_pool")
def avg_pool(w: GraphWriter, node: Node) -> Any:
    """AveragePool; extra pads at the end that never count are those of ceil_mode."""
    a = node.attrs
    attributes = _attributes(node, _static_pads(w, node))
    extra = list(a["extra_high"])
    if a["count_include_pad"] and any(extra):
        rank = len(extra)
        pads = attributes["pads"]
        pads[rank:] = [p - e for p, e in zip(pads[rank:], extra)]
        if not _ceil_mode_fits(node, pads):
            w.unsupported("the pads at the end are not those of ceil_mode")
        return w.node("AveragePool", w.operands(node), count_include_pad=1, ceil_mode=1, **attributes)
    return w.node("AveragePool", w.operands(node), count_include_pad=int(a["count_include_pad"]), **attributes)


def _ceil_mode_fits(node: Node, pads: list[int]) -> bool:
    """True when ceil_mode gives the node's output sizes."""
    a = node.attrs
    rank = len(a["kernel"])
    strides, dilations = a["strides"] or (1,) * rank, a["dilations"] or (1,) * rank
    for axis in range(rank):
        size, out = node.types[0].shape[2 + axis], node.result.shape[2 + axis]
        if not isinstance(size, int):
            return False
        extent = (a["kernel"][axis] - 1) * dilations[axis] + 1
        room = size + pads[axis] + pads[rank + axis] - extent
        positions = -(-room // strides[axis]) + 1
        if (positions - 1) * strides[axis] >= size + pads[axis]:
            positions -= 1
        if positions != out:
            return False
    return True


@exports("lp_pool")
def lp_pool(w: GraphWriter, node: Node) -> Any:
    """LpPool; padding with zeros adds nothing."""
    (x,) = w.operands(node)
    x, pads = pad_first(w, x, node.attrs["pads_low"], node.attrs["pads_high"], w.like(0, node.operands[0]))
    return w.node("LpPool", [x], p=node.attrs["p"], **_attributes(node, pads))


@exports("resize")
def resize(w: GraphWriter, node: Node) -> Any:
    """Resize by sizes where these give the scales, else by scales."""
    a = node.attrs
    (x,) = w.operands(node)
    roi = ""
    if a["roi"]:
        roi = w.constant(np.array(a["roi"]), node.result.dtype)
    scales, sizes = "", ""
    if _sizes_give_scales(node):
        sizes = w.shape(a["shape"])
    else:
        for scale, before, after in zip(a["scales"], node.types[0].shape, a["shape"]):
            if isinstance(before, int) and after != scaled(before, scale):
                w.unsupported(f"the scale {scale} does not give the size {after} from {before}")
        scales = w.constant(np.array(a["scales"]), "f32")
    return w.node(
        "Resize",
        [x, roi, scales, sizes],
        mode=a["mode"],
        coordinate_transformation_mode=a["coordinate"],
        nearest_mode=a["nearest"],
        cubic_coeff_a=a["cubic_a"],
        exclude_outside=int(a["exclude_outside"]),
        extrapolation_value=a["extrapolation"],
        antialias=int(a["antialias"]),
    )


def _sizes_give_scales(node: Node) -> bool:
    """True when the scales are output over input sizes."""
    scales = node.attrs["scales"]
    if not scales:
        return True
    for scale, before, after in zip(scales, node.types[0].shape, node.attrs["shape"]):
        if before == after and scale == 1.0:
            continue
        if not isinstance(before, int) or not isinstance(after, int) or not before:
            return False
        if abs(scale - after / before) > 1e-9 * scale:
            return False
    return True
