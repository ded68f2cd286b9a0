"""The nine light models of the onnx package, compiled, against onnxruntime and the package's own outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models import light_models
from tests.models.engines import assert_agree, compiled, outputs_of
from tests.support.onnxruntime_session import onnxruntime_session


def test_every_light_model_has_a_test() -> None:
    assert sorted(path.stem for path in light_models.folder().glob("*.onnx")) == sorted(light_models.NAMES)


@pytest.mark.parametrize("name", light_models.NAMES)
def test_as_it_ships(name: str, tmp_path: Path) -> None:
    path, x = light_models.path_of(name), light_models.package_input()
    with compiled(path, tmp_path) as session:
        actual = outputs_of(session, x)
    assert_agree(actual, outputs_of(onnxruntime_session(path), x))
    assert_agree(actual, [light_models.stored_output(name)])
    (tmp_path / f"{path.stem}.dhc").unlink()


@pytest.mark.parametrize("name", light_models.CONVOLUTIONAL)
def test_with_random_weights(name: str, tmp_path: Path) -> None:
    """Constant weights give the same answer for any image; these do not."""
    model = light_models.with_random_weights(name)
    x = np.random.default_rng(2).standard_normal((1, 3, 224, 224)).astype(np.float32)
    with compiled(model, tmp_path) as session:
        actual = outputs_of(session, x)
    wanted = outputs_of(onnxruntime_session(model), x)
    assert float(wanted[0].std()) > 1e-6, "the answer must depend on the channel"
    assert_agree(actual, wanted)
    assert int(actual[0].argmax()) == int(wanted[0].argmax())
    (tmp_path / "model.dhc").unlink()
