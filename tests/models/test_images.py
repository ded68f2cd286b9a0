"""Real models on real images: the compiled artifact beside onnxruntime, and beside what the images really show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import real_inputs
from tests.models.conftest import Compiled
from tests.models.engines import (
    TOLERANCE,
    assert_agree,
    assert_agree_quantized,
    outputs_of,
    relative_difference,
)
from tests.support.onnxruntime_session import onnxruntime_session


@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_cnn_int8_qoperator"])
def test_handwritten_digits(shared_data: Path, compiled_model: Compiled, name: str) -> None:
    session, path = compiled_model(name), shared_data / "models" / f"{name}.onnx"
    plain, usual = onnxruntime_session(path, optimize=False), onnxruntime_session(path)
    expected = np.load(shared_data / "expected" / "mnist.npz")
    for row, (number, x) in enumerate(real_inputs.digits(shared_data).items()):
        assert np.array_equal(expected["image"][row], x[0])
        (logits,) = outputs_of(session, x)
        assert_agree([logits], outputs_of(plain, x))
        assert int(logits.argmax()) == int(outputs_of(usual, x)[0].argmax()) == number
        stored = expected["logits_int8" if "int8" in name else "logits"][row : row + 1]
        assert int(stored.argmax()) == number
        if "int8" not in name:  # those of int8 come from fused kernels that round differently
            assert relative_difference(logits, stored) <= TOLERANCE


def test_tissue_of_a_histology_patch(shared_data: Path, compiled_model: Compiled) -> None:
    name = "histology_tissue_mlp_eddl"
    pixels = real_inputs.tissue_pixels(shared_data)
    (actual,) = outputs_of(compiled_model(name), pixels)
    assert_agree([actual], outputs_of(onnxruntime_session(shared_data / "models" / f"{name}.onnx"), pixels))
    reference = np.load(shared_data / "histology" / "patch_tissue_prob_reference.npy")
    tissue = actual[:, 1].reshape(256, 256)
    assert float(np.abs(tissue - reference).max()) <= 1e-5
    assert np.array_equal(tissue > 0.5, reference > 0.5)
    assert 0.01 < float((tissue > 0.5).mean()) < 0.99


def test_the_face_of_an_astronaut(shared_data: Path, compiled_model: Compiled) -> None:
    name = "face_ultraface_rfb320"
    x = real_inputs.face_input(real_inputs.astronaut())
    scores, boxes = outputs_of(compiled_model(name), x)
    wanted = outputs_of(onnxruntime_session(shared_data / "models" / f"{name}.onnx"), x)
    assert_agree([scores, boxes], wanted)
    best = int(scores[0, :, 1].argmax())
    assert best == int(wanted[0][0, :, 1].argmax())
    assert scores[0, best, 1] > 0.99
    assert boxes[0, best] == pytest.approx([0.351, 0.120, 0.523, 0.340], abs=2e-3)


@pytest.mark.parametrize(("picture", "label", "confidence"), [("astronaut", 0, 0.70), ("wolves", 18, 0.89)])
def test_objects_of_photographs(
    shared_data: Path, compiled_model: Compiled, picture: str, label: int, confidence: float
) -> None:
    name = "detect_fastestdet_coco"
    image = real_inputs.astronaut() if picture == "astronaut" else real_inputs.wolves(shared_data)
    x = real_inputs.detection_input(image)
    (found,) = outputs_of(compiled_model(name), x)
    (wanted,) = outputs_of(onnxruntime_session(shared_data / "models" / f"{name}.onnx"), x)
    assert_agree([found], [wanted])
    score = found[0, :, 4] * found[0, :, 5:].max(axis=1)
    best = int(score.argmax())
    assert best == int((wanted[0, :, 4] * wanted[0, :, 5:].max(axis=1)).argmax())
    assert int(found[0, best, 5:].argmax()) == label
    assert float(score[best]) == pytest.approx(confidence, abs=0.01)
    confident = wanted[0, :, 4] > 0.3
    assert confident.any()
    assert np.array_equal(found[0, confident, 5:].argmax(axis=1), wanted[0, confident, 5:].argmax(axis=1))


@pytest.mark.parametrize(
    ("name", "photographs"),
    [("retina_wnet_vessels", ("01", "07", "10")), ("retina_wnet_vessels_int8_qdq", ("01",))],
)
def test_vessels_of_the_retina(
    shared_data: Path, compiled_model: Compiled, name: str, photographs: tuple[str, ...]
) -> None:
    _vessels(shared_data, compiled_model, name, photographs)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "photographs"),
    [("retina_wnet_vessels", ("02", "12")), ("retina_wnet_vessels_int8_qdq", ("02", "07", "10", "12"))],
)
def test_vessels_of_the_other_retinas(
    shared_data: Path, compiled_model: Compiled, name: str, photographs: tuple[str, ...]
) -> None:
    _vessels(shared_data, compiled_model, name, photographs)


def _vessels(shared_data: Path, compiled_model: Compiled, name: str, photographs: tuple[str, ...]) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    plain: Any = onnxruntime_session(path, optimize="int8" not in name)
    usual = plain if "int8" not in name else onnxruntime_session(path)
    for photograph in photographs:
        x, manual = real_inputs.retina(shared_data, photograph)
        (prob,) = outputs_of(compiled_model(name), x)
        if "int8" in name:
            assert_agree_quantized(prob, outputs_of(plain, x)[0])
        else:
            assert_agree([prob], outputs_of(plain, x))
        vessels = prob[0, 0] > 0.42
        overlap = real_inputs.dice(vessels, manual)
        theirs = outputs_of(usual, x)[0][0, 0] > 0.42
        # Not lower than onnxruntime's; a pixel on the threshold may fall either way.
        assert overlap >= real_inputs.dice(theirs, manual) - (2e-3 if "int8" in name else 1e-5)
        assert overlap > 0.75
        if photograph == "01":
            stored = np.load(shared_data / "expected" / "retina_wnet_01_h.npz")
            key = "prob_int8" if "int8" in name else "prob"
            assert np.array_equal(np.rint(x[0] * 255).astype(np.uint8), stored["image"].transpose(2, 0, 1))
            assert real_inputs.dice(vessels, stored[key].astype(np.float32) > 0.42) > 0.995


def test_super_resolution_of_a_test_vector(shared_data: Path, compiled_model: Compiled) -> None:
    import onnx

    def tensor(name: str) -> np.ndarray:
        data = (shared_data / "models" / "testvectors" / f"superres_x3_{name}_0.pb").read_bytes()
        return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))

    (actual,) = outputs_of(compiled_model("superres_x3"), tensor("input"))
    assert_agree([actual], [tensor("output")])


@pytest.mark.parametrize("name", ["kws_micro_fp32", "kws_micro_int8_qdq"])
def test_keywords_of_stored_features(shared_data: Path, compiled_model: Compiled, name: str) -> None:
    stored, path = np.load(shared_data / "expected" / "kws_random.npz"), shared_data / "models" / f"{name}.onnx"
    (actual,) = outputs_of(compiled_model(name), stored["input"])
    (wanted,) = outputs_of(onnxruntime_session(path, optimize=False), stored["input"])
    expected = stored["int8" if "int8" in name else "fp32"]
    assert int(actual.argmax()) == int(expected.argmax())
    if "int8" in name:
        assert_agree_quantized(actual, wanted)
        assert int(actual.argmax()) == int(outputs_of(onnxruntime_session(path), stored["input"])[0].argmax())
    else:
        assert_agree([actual], [wanted])
        assert_agree([actual], [expected])


def test_stored_brain_waves(shared_data: Path, compiled_model: Compiled) -> None:
    stored, name = np.load(shared_data / "expected" / "eegnet_random.npz"), "eeg_eegnet_8_2_erp"
    session = compiled_model(name)
    (actual,) = outputs_of(session, stored["eeg"])
    assert_agree([actual], [stored["prob"]])
    assert np.array_equal(actual.argmax(axis=1), stored["prob"].argmax(axis=1))
    singles = np.concatenate([outputs_of(session, stored["eeg"][i : i + 1])[0] for i in range(4)])
    assert_agree([singles], [stored["prob"]])
