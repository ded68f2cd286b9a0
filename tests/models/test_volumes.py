"""Networks for brain volumes on a real T1 scan: class by class equal to onnxruntime and to the stored labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.frontend.onnx.real_models import model_bytes
from tests.models import real_inputs
from tests.models.conftest import Compiled
from tests.models.engines import compiled, outputs_of, relative_difference
from tests.support.onnxruntime_session import onnxruntime_session

# A MeshNet sees 46 voxels in each direction (dilations 1 2 4 8 16 8 4 2 1): further inside a block of the volume, the
# labels are those of the whole.
_REACH = 46
_STORED = {
    "brain_meshnet_5ch_3cls": "meshnet5_t1_crop",
    "brain_meshnet_11ch_3cls": "brain_meshnet_11ch_3cls_t1_crop",
    "brain_meshnet_20ch_3cls_elu": "brain_meshnet_20ch_3cls_elu_t1_crop",
    "brain_meshnet_30ch_18cls_elu": "brain_meshnet_30ch_18cls_elu_t1_crop",
}
_CLASSES = {name: 18 if "18cls" in name else 3 for name in _STORED}


@pytest.fixture(scope="module")
def volume(shared_data: Path) -> np.ndarray:
    return real_inputs.t1_volume(shared_data)


def _assert_equal_labels(labels: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for ties: voxels in which two classes score the same up to rounding."""
    assert labels.shape == wanted.shape
    assert float((labels != wanted).mean()) <= 1e-6


@pytest.mark.parametrize("name", sorted(_STORED))
def test_a_block_of_the_head(shared_data: Path, compiled_model: Compiled, volume: np.ndarray, name: str) -> None:
    edge = 56 if "30ch" in name else 72
    start = (100, 96, 84)
    block = real_inputs.scaled(volume, name)[tuple(slice(s, s + edge) for s in start)]
    x = np.ascontiguousarray(block[None, None])
    (logits,) = outputs_of(compiled_model(name), x)
    (wanted,) = outputs_of(onnxruntime_session(shared_data / "models" / f"{name}.onnx"), x)
    assert relative_difference(logits, wanted) <= 1e-4
    _assert_equal_labels(logits.argmax(axis=1), wanted.argmax(axis=1))
    assert len(np.unique(logits.argmax(axis=1))) >= 3


def test_labels_inside_a_block_are_those_of_the_whole(
    shared_data: Path, compiled_model: Compiled, volume: np.ndarray
) -> None:
    name, edge = "brain_meshnet_5ch_3cls", 128
    stored = np.load(shared_data / "expected" / f"{_STORED[name]}.npz")["labels"]
    start = (64, 70, 60)
    block = real_inputs.scaled(volume, name)[tuple(slice(s, s + edge) for s in start)]
    (logits,) = outputs_of(compiled_model(name), np.ascontiguousarray(block[None, None]))
    inner = (slice(_REACH, edge - _REACH),) * 3
    labels = logits[0].argmax(axis=0)[inner]
    wanted = stored[tuple(slice(s + _REACH, s + edge - _REACH) for s in start)]
    assert np.array_equal(labels, wanted)
    assert set(np.unique(labels)) == {0, 1, 2}


def test_the_export_of_pytorch_labels_as_the_converted_network(
    shared_data: Path, compiled_model: Compiled, volume: np.ndarray, tmp_path: Path
) -> None:
    """Same network, axes reversed; its fixed size is freed for a smaller block."""
    exported = compiled(model_bytes(shared_data / "models" / "brain_meshnet_5ch_3cls_torchexport.onnx"), tmp_path)
    block = real_inputs.scaled(volume, "brain_meshnet_5ch_3cls")[100:172, 96:160, 84:140]
    (logits,) = outputs_of(compiled_model("brain_meshnet_5ch_3cls"), np.ascontiguousarray(block[None, None]))
    reversed_axes = np.ascontiguousarray(block.transpose(2, 1, 0)[None, None])
    (other,) = outputs_of(exported, reversed_axes)
    assert relative_difference(np.ascontiguousarray(other.transpose(0, 1, 4, 3, 2)), logits) <= 1e-4
    _assert_equal_labels(other.argmax(axis=1).transpose(0, 3, 2, 1), logits.argmax(axis=1))


def test_the_mask_of_the_brain(shared_data: Path, compiled_model: Compiled, volume: np.ndarray) -> None:
    name = "brain_unet3d_small"
    halved = volume.astype(np.float32).reshape(128, 2, 128, 2, 128, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    x = np.ascontiguousarray((halved / halved.max())[None, None])
    (prob,) = outputs_of(compiled_model(name), x)
    (wanted,) = outputs_of(onnxruntime_session(shared_data / "models" / f"{name}.onnx"), x)
    assert relative_difference(prob, wanted) <= 1e-4
    mask = prob[0, 0] > 0.5
    stored = np.load(shared_data / "expected" / f"{name}_t1_crop.npz")["mask"]
    _assert_equal_labels(mask, wanted[0, 0] > 0.5)
    _assert_equal_labels(mask, stored)
    assert float(mask.sum()) * 8e-3 == pytest.approx(1586, abs=1)  # voxels of 2 mm, in mL


@pytest.mark.nightly
@pytest.mark.parametrize("name", sorted(_STORED))
def test_the_whole_head(shared_data: Path, compiled_model: Compiled, volume: np.ndarray, name: str) -> None:
    """Every stored label, on the crop of the README (the 5-channel network: on all 256^3 voxels)."""
    whole = name == "brain_meshnet_5ch_3cls"
    values = real_inputs.scaled(volume, name)
    x = np.ascontiguousarray((values if whole else values[real_inputs.CROP])[None, None])
    (logits,) = outputs_of(compiled_model(name), x)
    labels = logits[0].argmax(axis=0)
    stored = np.load(shared_data / "expected" / f"{_STORED[name]}.npz")["labels"]
    assert float((labels != stored).mean()) <= 1e-5
    assert len(np.unique(labels)) == _CLASSES[name]


@pytest.mark.nightly
def test_the_whole_head_by_the_export_of_pytorch(
    shared_data: Path, compiled_model: Compiled, volume: np.ndarray
) -> None:
    values = real_inputs.scaled(volume, "brain_meshnet_5ch_3cls")
    x = np.ascontiguousarray(values.transpose(2, 1, 0)[None, None])
    (logits,) = outputs_of(compiled_model("brain_meshnet_5ch_3cls_torchexport"), x)
    stored = np.load(shared_data / "expected" / "meshnet5_t1_crop.npz")["labels"]
    assert float((logits[0].argmax(axis=0).transpose(2, 1, 0) != stored).mean()) <= 1e-5
