"""Resize against ONNX Runtime (and the reference of the onnx package where the runtime has no kernel)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dhc.errors import ShapeError
from tests.ir.ops.finite_differences import check_gradient
from tests.ir.single_op import assert_close, graph_of, run_dhc, run_onnx

COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SCALES = [(2.0, 2.0), (0.5, 0.5), (1.7, 0.6), (3.0, 1.0), (0.3, 2.6)]


def _x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _both(x: np.ndarray, scales: tuple[float, ...], ours: dict[str, Any], theirs: dict[str, Any], **more: Any) -> None:
    """Compares a call given by scales, as the ONNX importer makes it."""
    factors = np.array(scales, np.float32)
    shape = [int(np.floor(n * f)) for n, f in zip(np.float32(x.shape), factors)]
    roi = more.pop("roi", None)
    given = None if roi is None else np.array(roi, np.float32)
    expected = run_onnx("Resize", [x, given, factors], opset=19, **theirs)
    attrs = {**ours} if roi is None else {**ours, "roi": [float(v) for v in given]}  # type: ignore[union-attr]
    actual = run_dhc("resize", [x], shape=shape, scales=[float(f) for f in factors], **attrs)
    assert_close(actual, expected, 5e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("nearest", ROUNDINGS)
def test_nearest(scale: tuple[float, float], coordinate: str, nearest: str) -> None:
    # Sizes without coordinates that are half a rounding error away from a tie, which either side may be taken for.
    size = (6, 6) if coordinate == "half_pixel_symmetric" else (6, 7)
    if coordinate == "half_pixel_symmetric":
        scale = (scale[0], {0.6: 0.55, 2.6: 2.4}.get(scale[1], scale[1]))
    _both(
        _x(1, 2, *size), (1, 1, *scale), {"mode": "nearest", "coordinate": coordinate, "nearest": nearest},
        {"mode": "nearest", "coordinate_transformation_mode": coordinate, "nearest_mode": nearest},
    )  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("coordinate", COORDINATES)
def test_linear(scale: tuple[float, float], coordinate: str) -> None:
    ours = {"mode": "linear", "coordinate": coordinate}
    theirs = {"mode": "linear", "coordinate_transformation_mode": coordinate}
    _both(_x(1, 2, 6, 7), (1, 1, *scale), ours, theirs)
    _both(_x(1, 2, 4, 5, 6), (1, 1, 1.5, *scale), ours, theirs)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("coordinate", COORDINATES)
@pytest.mark.parametrize("outside", [False, True])
def test_cubic(scale: tuple[float, float], coordinate: str, outside: bool) -> None:
    _both(
        _x(1, 2, 6, 7), (1, 1, *scale),
        {"mode": "cubic", "coordinate": coordinate, "exclude_outside": outside, "cubic_a": -0.5},
        {"mode": "cubic", "coordinate_transformation_mode": coordinate, "exclude_outside": int(outside),
         "cubic_coeff_a": -0.5},
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.3, 0.7), (0.6, 1.0)])
@pytest.mark.parametrize("coordinate", ["half_pixel", "asymmetric"])
@pytest.mark.parametrize("outside", [False, True])
def test_antialias_agrees_with_onnx(mode: str, scale: tuple[float, float], coordinate: str, outside: bool) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    x = _x(1, 1, 9, 8)
    factors = np.array((1, 1, *scale), np.float32)
    node = onnx.helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode=mode, coordinate_transformation_mode=coordinate, antialias=1,
        exclude_outside=int(outside),
    )  # fmt: skip
    (expected,) = ReferenceEvaluator(node).run(None, {"x": x, "s": factors})
    shape = [int(np.floor(n * f)) for n, f in zip(x.shape, factors)]
    actual = run_dhc(
        "resize", [x], shape=shape, scales=[float(f) for f in factors], mode=mode, coordinate=coordinate,
        antialias=True, exclude_outside=outside,
    )  # fmt: skip
    np.testing.assert_allclose(actual[0], expected, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.3, 0.7), (2.0, 0.4)])
@pytest.mark.parametrize("coordinate", ["half_pixel", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("outside", [False, True])
def test_antialias_agrees_with_onnxruntime(
    mode: str, scale: tuple[float, float], coordinate: str, outside: bool
) -> None:
    _both(
        _x(1, 2, 9, 8), (1, 1, *scale),
        {"mode": mode, "coordinate": coordinate, "antialias": True, "exclude_outside": outside},
        {"mode": mode, "coordinate_transformation_mode": coordinate, "antialias": 1,
         "exclude_outside": int(outside)},
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("roi", [(0.1, 0.2, 0.7, 0.9), (-0.3, 0.0, 1.2, 1.4)])
def test_crop_and_resize(mode: str, roi: tuple[float, ...]) -> None:
    full = (0.0, 0.0, roi[0], roi[1], 1.0, 1.0, roi[2], roi[3])
    _both(
        _x(1, 1, 6, 7), (1, 1, 1.5, 0.8),
        {"mode": mode, "coordinate": "tf_crop_and_resize", "extrapolation": -7.0},
        {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": -7.0},
        roi=full,
    )  # fmt: skip


def test_sizes_alone_give_the_factors() -> None:
    x = _x(2, 3, 5, 7)
    sizes = np.array([2, 3, 8, 4], np.int64)
    for mode in ("nearest", "linear", "cubic"):
        expected = run_onnx("Resize", [x, None, None, sizes], opset=19, mode=mode)
        assert_close(run_dhc("resize", [x], shape=(2, 3, 8, 4), mode=mode), expected, 5e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_symbolic_sizes(mode: str, antialias: bool) -> None:
    if mode == "nearest" and antialias:
        return
    for scales, shape in [((), ("N", 1, "2*H-1", 5)), ((1.0, 1.0, 2.0, 0.5), ("N", 1, "2*H", "W//2"))]:
        attrs = {"shape": shape, "scales": scales, "mode": mode, "antialias": antialias}
        for h, w in [(3, 8), (6, 5)]:
            x = np.random.default_rng(h).standard_normal((2, 1, h, w))
            graph = graph_of("resize", [x], attrs, ("N", 1, "H", "W"))
            known = (2, 1, 2 * h - 1, 5) if not scales else (2, 1, 2 * h, w // 2)
            assert_close(graph.evaluate(x), run_dhc("resize", [x], **{**attrs, "shape": known}), 1e-12)
            check_gradient(graph, [x])


def test_infinity_stays_where_it_is() -> None:
    x = np.zeros((1, 1, 1, 9), np.float32)
    x[..., 0] = np.inf
    (y,) = run_dhc("resize", [x], shape=(1, 1, 1, 18), mode="linear")
    assert np.isfinite(y[..., 4:]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_integers_keep_their_range(dtype: Any) -> None:
    info = np.iinfo(dtype)
    x = np.array([[[[info.min, info.max], [info.max, info.min]]]], dtype)
    (y,) = run_dhc("resize", [x], shape=(1, 1, 7, 7), mode="cubic")
    assert y.dtype == dtype
    assert y.min() == info.min
    assert y.max() == info.max


def test_wrong_calls_are_refused() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    for attrs, message in [
        ({"shape": (1, 1, 2)}, "shape needs 4"),
        ({"shape": (1, 1, 2, 2), "scales": (1.0, 1.0, 0.0, 1.0)}, "positive"),
        ({"shape": (1, 1, 2, 2), "coordinate": "tf_crop_and_resize"}, "roi"),
        ({"shape": (1, 1, 2, 2), "mode": "nearest", "antialias": True}, "antialias"),
    ]:
        with pytest.raises(ShapeError, match=message):
            graph_of("resize", [x], attrs)
