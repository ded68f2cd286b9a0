"""The demo: its network is what was fitted, its picture shows what was read wrongly, and the whole agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dhc.cli import digits
from dhc.cli.demo import run_demo
from dhc.cli.montage import write_montage
from tests.support.onnxruntime_session import onnxruntime_session


@pytest.fixture(scope="module")
def data() -> digits.DigitsData:
    return digits.load_data()


def test_a_stratified_quarter_is_held_out(data: digits.DigitsData) -> None:
    assert data.train_images.shape == (1347, 64)
    assert data.test_images.shape == (450, 64)
    assert data.test_images.dtype == np.float32
    share = np.bincount(data.test_labels) / np.bincount(np.r_[data.train_labels, data.test_labels])
    assert np.all(np.abs(share - 0.25) < 0.01)
    again = digits.load_data()
    assert np.array_equal(again.test_images, data.test_images)


def test_the_onnx_file_computes_what_was_fitted(data: digits.DigitsData, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    layers = tuple(
        (rng.standard_normal(shape, np.float32) / 12, rng.standard_normal(shape[1], np.float32))
        for shape in ((144, 16), (16, 10))
    )
    network = digits.DigitsNetwork(digits._filter_bank(), layers)
    path = tmp_path / "digits.onnx"
    digits.write_onnx(network, path)
    session = onnxruntime_session(path)
    (found,) = session.run(None, {"image": data.test_images})

    hidden = digits._features(data.test_images.reshape(-1, 8, 8), network.filters)
    hidden = np.maximum(hidden @ layers[0][0] + layers[0][1], 0)
    sums = hidden @ layers[1][0] + layers[1][1]
    wanted = np.exp(sums - sums.max(1, keepdims=True))
    wanted /= wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_montage_shows_wrong_ones_first_in_red(tmp_path: Path) -> None:
    from PIL import Image

    images = np.zeros((30, 8, 8), np.float32)
    labels = np.arange(30) % 10
    predictions = labels.copy()
    predictions[29] = 0
    path = tmp_path / "sheet.png"
    assert write_montage(images, labels, predictions, path, columns=5, rows=2) == 10
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert red.sum() > 100
    assert columns.max() < 60 and rows.max() < 100, "red only in the first cell"
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"], "no temporary file stays"


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_demo(tmp_path / "out", lines.append)
    assert result["held_out"] == 450
    assert result["accuracy"]["dhc"] > 0.97
    assert result["agreement"] == 1.0
    assert result["max_difference"] < 1e-5
    assert all(Path(path).stat().st_size > 0 for path in result["files"].values())
    assert any("98." in line or "99." in line or "97." in line for line in lines)
