"""Sampling, regions, determinants, distinct rows and trees against onnxruntime and NumPy, compiled and interpreted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dhc
from dhc.errors import DhcError
from dhc.frontend.onnx.backend import DhcBackend
from tests.ir.single_op import assert_close, graph_of, run_dhc, run_onnx, run_op

MODES = {"linear": "linear", "nearest": "nearest", "cubic": "cubic"}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compiled(op: str, arrays: list[np.ndarray], attrs: dict[str, Any]) -> list[np.ndarray]:
    """The same call through the compiler, with every size a symbol."""
    graph = graph_of(op, arrays, attrs, symbolic=True)
    session = dhc.compile(graph, targets=["cpu"]).session()
    return list(session.run({v.name: a for v, a in zip(graph.inputs, arrays)}).values())


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", list(MODES))
def test_grid_sample_is_onnx(mode: str, padding: str, align: bool) -> None:
    """Positions lie off halves, where roundings of the two programs could differ."""
    rng = np.random.default_rng(len(mode) + 7 * len(padding) + align)
    for spatial, out in (((4, 5), (3, 4)), ((1, 3), (2, 5)), ((3, 4, 2), (2, 2, 3))):
        if mode == "cubic" and len(spatial) == 3:
            continue
        x = normal(2, 3, *spatial)
        grid = rng.uniform(-2.7, 2.7, (2, *out, len(spatial))).astype(np.float32)
        names = {"mode": mode, "padding_mode": padding, "align_corners": int(align)}
        expected = run_onnx("GridSample", [x, grid], opset=20, **names)
        attrs = {"mode": mode, "padding": padding, "align_corners": align}
        assert_close([run_op("grid_sample", x, grid, **attrs)], expected, 1e-4)
        if spatial == (4, 5):
            assert_close(compiled("grid_sample", [x, grid], attrs), expected, 1e-4)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_positions_that_are_no_numbers_stay_within_the_operand(padding: str) -> None:
    x = normal(1, 1, 3, 4)
    grid = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.1], np.float32).reshape(1, 3, 1, 2)
    for mode in MODES:
        attrs = {"mode": mode, "padding": padding}
        assert compiled("grid_sample", [x, grid], attrs)[0].shape == (1, 1, 3, 1)
        assert run_op("grid_sample", x, grid, **attrs).shape == (1, 1, 3, 1)


def test_positions_in_elements() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    grid = np.array([[2, 1], [1.5, 0], [0, 1.25]], np.float32).reshape(1, 3, 1, 2)
    np.testing.assert_allclose(run_op("grid_sample", x, grid, normalized=False).reshape(-1), [6, 1.5, 5])


def test_nothing_is_sampled_from_an_empty_image() -> None:
    with pytest.raises(DhcError, match="there is nothing to read"):
        run_op("grid_sample", np.zeros((1, 1, 0, 2), np.float32), np.zeros((1, 2, 2, 2), np.float32))


@pytest.mark.parametrize("half_pixel", [False, True])
@pytest.mark.parametrize("sampling", [0, 2, 3])
def test_roi_align_is_onnx(sampling: int, half_pixel: bool) -> None:
    rng = np.random.default_rng(sampling)
    x = normal(2, 3, 9, 7)
    corners = np.sort(rng.uniform(-2, 11, (6, 2, 2)), axis=1).reshape(6, 4)[:, [0, 1, 2, 3]].astype(np.float32)
    batches = np.array([0, 1, 1, 0, 1, 0], np.int64)
    expected = run_onnx(
        "RoiAlign", [x, corners, batches], opset=16, output_height=3, output_width=2, sampling_ratio=sampling,
        spatial_scale=0.8, coordinate_transformation_mode="half_pixel" if half_pixel else "output_half_pixel",
    )  # fmt: skip
    operands = [x, corners, batches, np.array(0.8, np.float32)]
    attrs = {"height": 3, "width": 2, "sampling": sampling, "half_pixel": half_pixel}
    assert_close(run_dhc("roi_align", operands, **attrs), expected, 1e-4)
    assert_close(compiled("roi_align", operands, attrs), expected, 1e-4)


@pytest.mark.parametrize("batch", [-1, 2])
def test_a_region_of_an_image_that_does_not_exist(batch: int) -> None:
    operands = [normal(2, 1, 3, 3), np.array([[0, 0, 2, 2]], np.float32), np.array([batch]), np.array(1, np.float32)]
    attrs = {"height": 1, "width": 1}
    for run in (lambda: run_dhc("roi_align", operands, **attrs), lambda: compiled("roi_align", operands, attrs)):
        with pytest.raises(DhcError):
            run()


@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_determinants_are_those_of_lapack(n: int) -> None:
    x = np.random.default_rng(n).standard_normal((4, n, n))
    x[1, :, 0] = 0  # singular
    x[2, 0, 0] = 0  # needs a pivot
    expected = np.linalg.det(x)
    for found in (run_op("determinant", x), compiled("determinant", [x], {})[0]):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ordered", [False, True])
def test_distinct_rows_are_those_of_numpy(ordered: bool) -> None:
    x = np.random.default_rng(3).integers(0, 3, (60, 3)).astype(np.int32)
    values, first, inverse, counts = np.unique(x, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    if not ordered:
        order = np.argsort(first)
        inverse = np.argsort(order)[inverse]
        values, first, counts = values[order], first[order], counts[order]
    expected = [values, first, inverse, counts]
    for found in (run_op("unique_rows", x, sorted=ordered), compiled("unique_rows", [x], {"sorted": ordered})):
        for a, e in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_a_cycle_of_nodes_ends() -> None:
    nodes = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], np.int64)
    operands = [
        np.ones((1, 1), np.float32), np.ones(2, np.float32), nodes, np.array([0]), np.ones(1, np.float32),
        np.array([0]),
    ]  # fmt: skip
    with pytest.raises(DhcError, match="cycle"):
        run_dhc("tree_ensemble", operands, targets=1)
    with pytest.raises(DhcError):
        compiled("tree_ensemble", operands, {"targets": 1})


@pytest.mark.parametrize("length", [7, 8, 12])
@pytest.mark.parametrize("onesided", [0, 1])
def test_transforms_are_those_of_numpy(length: int, onesided: int) -> None:
    """Signals that are cut or filled with zeros, real and complex, forth and back."""
    from onnx import helper

    def run(x: np.ndarray, inverse: int) -> np.ndarray:
        operands = [x.astype(np.float32), np.array(length, np.int64), np.array(1, np.int64)]
        node = helper.make_node("DFT", ["x", "length", "axis"], ["y"], inverse=inverse, onesided=onesided)
        result: np.ndarray = DhcBackend.run_node(node, operands, "CPU")[0]
        return result

    signal = normal(2, 9, 3, seed=length)
    transform = np.fft.rfft if onesided else np.fft.fft
    expected = transform(signal, n=length, axis=1)
    found = run(signal[..., None], 0)
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected, rtol=1e-4, atol=1e-4)
    back = run(np.stack([expected.real, expected.imag], axis=-1), 1)
    if onesided:
        np.testing.assert_allclose(back[..., 0], np.fft.irfft(expected, n=length, axis=1), rtol=1e-4, atol=1e-4)
    else:
        restored = np.fft.ifft(expected, axis=1)
        np.testing.assert_allclose(back[..., 0] + 1j * back[..., 1], restored, rtol=1e-4, atol=1e-4)
