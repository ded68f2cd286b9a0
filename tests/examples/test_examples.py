"""Every example runs as a user runs it, and the brain example finds the tissue that the data's README states."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.onnxruntime_session import onnxruntime_session

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", ["python_graph", "write_a_pass", "add_an_op", "gradients"])
def test_example_runs(name: str) -> None:
    """The examples check their own results."""
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_example_is_listed_and_tested() -> None:
    """A new example belongs into the table and into the list above."""
    names = {p.stem for p in EXAMPLES.glob("*.py")}
    assert names == {"python_graph", "write_a_pass", "add_an_op", "gradients", "brain_tissue"}
    table = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}.py`" in table for name in names)


def test_brain_tissue(shared_data: Path) -> None:
    """A sub-volume of the real scan: labels equal those that onnxruntime gave for the same voxels."""
    pytest.importorskip("nibabel", reason="needs the extra `imaging`")
    import numpy as np

    spec = importlib.util.spec_from_file_location("brain_tissue", EXAMPLES / "brain_tissue.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = shared_data / "models" / "brain_meshnet_5ch_3cls.onnx"
    scan = shared_data / "brain_mri" / "t1_crop.nii.gz"
    crop = (slice(90, 154), slice(90, 154), slice(90, 154))
    volumes = module.tissue_volumes(model, scan, crop)

    nibabel = pytest.importorskip("nibabel", reason="needs the extra `imaging`")
    volume = np.asarray(nibabel.load(scan).dataobj, dtype=np.float32)
    part = ((volume - volume.min()) / (volume.max() - volume.min()))[crop]
    session = onnxruntime_session(model)
    labels = session.run(None, {"t1": np.ascontiguousarray(part[None, None])})[0][0].argmax(axis=0)
    for code, name in ((1, "white"), (2, "grey")):
        expected = float((labels == code).sum()) / 1000
        assert volumes[name] == pytest.approx(expected, abs=0.01)  # ties within rounding: ten voxels
        assert expected > 10
