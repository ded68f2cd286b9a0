"""`run`: inputs from files, preprocessing, top classes, outputs, profiles."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dhc.cli.pictures import MAX_PIXELS
from dhc.cli.preprocessing import PREPROCESSING, Picture
from tests.cli.conftest import Command


def image(*values: float) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.float32)[:, None, None], (3, 8, 8))[None].copy()


def test_npy_in_npy_out(dhc: Command, artifact: Path) -> None:
    np.save("x.npy", image(1, 2, 3))
    answer = dhc("run", artifact, "--input", "image=x.npy", "-o", "y.npy")
    assert answer.status == 0, answer.err
    assert np.allclose(np.load("y.npy"), [[2, 4, 6]])
    assert answer.out.strip().splitlines()[-1].startswith("next: dhc bench ")


def test_a_model_runs_without_an_artifact(dhc: Command, classifier: Path) -> None:
    np.save("x.npy", image(1, 2, 3).astype(np.float64))
    answer = dhc("run", classifier, "--input", "x.npy", "-o", "y.npz", "--shape", "1x3x8x8", "--threads", 1)
    assert answer.status == 0, answer.err
    assert np.allclose(np.load("y.npz")["scores"], [[2, 4, 6]])


def test_npz_names_all_inputs(dhc: Command, adder: Path) -> None:
    a, b = np.full((2, 3), 3, np.float32), np.full((2, 3), 5, np.float32)
    np.savez("both.npz", a=a, b=b)
    assert dhc("run", adder, "--input", "both.npz", "-o", "out.npz").status == 0
    with np.load("out.npz") as out:
        assert np.all(out["sum"] == 8) and np.all(out["product"] == 15)
    refused = dhc("run", adder, "--input", "both.npz", "-o", "out.npy")
    assert refused.status == 2 and ".npz" in refused.err


def test_png_top_classes_with_labels(dhc: Command, artifact: Path, reds: Path) -> None:
    Path("labels.txt").write_text("red\ngreen\nblue\n")
    answer = dhc("run", artifact, "-i", reds, "--pre", "unit", "--top-k", 2, "--labels", "labels.txt")
    assert answer.status == 0, answer.err
    assert "red" in answer.out and "blue" in answer.out and "green" not in answer.out
    words = ["run", artifact, "-i", reds, "--pre", "unit", "--top-k", 2, "--labels", "labels.txt", "--json"]
    top = dhc(*words).data["top"]
    assert [(e["rank"], e["class"], e["label"]) for e in top] == [(1, 0, "red"), (2, 2, "blue")]
    assert top[0]["score"] == pytest.approx(2.0) and top[1]["score"] == pytest.approx(0.4)


def test_images_are_resized_and_batched(dhc: Command, artifact: Path, tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="needs the extra `imaging`")
    pil.new("L", (20, 30), 255).save(tmp_path / "white.png")
    pil.new("RGB", (8, 8), (0, 0, 0)).save(tmp_path / "black.png")
    words = ["-i", tmp_path / "white.png", "-i", tmp_path / "black.png", "--pre", "unit", "-o", "y.npy"]
    assert dhc("run", artifact, *words).status == 0
    assert np.allclose(np.load("y.npy"), [[2, 2, 2], [0, 0, 0]])


def test_dicom_values_are_in_modality_units(dhc: Command, folder: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra `imaging`")
    from onnx import helper

    from tests.cli.conftest import save, tensor

    model = save(
        folder / "mean.onnx",
        [helper.make_node("GlobalAveragePool", ["x"], ["y"], "pool")],
        [tensor("x", 1, 1, 128, 128)], [tensor("y", 1, 1, 1, 1)], {},
    )  # fmt: skip
    path = pydicom.data.get_testdata_file("CT_small.dcm")
    assert dhc("run", model, "-i", path, "-o", "y.npy").status == 0
    dataset = pydicom.dcmread(path)
    expected = (dataset.pixel_array * dataset.RescaleSlope + dataset.RescaleIntercept).mean()
    assert np.load("y.npy").item() == pytest.approx(expected, rel=1e-5)
    damaged = Path("damaged.dcm")
    damaged.write_bytes(Path(path).read_bytes()[:20000])
    assert dhc("run", model, "-i", damaged).status == 3
    damaged.write_bytes(b"no DICOM")
    assert dhc("run", model, "-i", damaged).status == 3


def test_profile_and_trace(dhc: Command, artifact: Path) -> None:
    answer = dhc("run", artifact, "-i", "random", "--profile", "--trace", "trace.json")
    assert answer.status == 0 and "steps" in answer.out
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    steps = dhc("run", artifact, "-i", "random", "--profile", "--json").data["steps"]
    assert len([e for e in events if e["ph"] == "X"]) == len(steps) > 0
    assert all(step["microseconds"] >= 0 for step in steps)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_figures_of_results_without_elements(dtype: str) -> None:
    from dhc.cli.verbs.run import _summary

    made = np.zeros((0, 3), getattr(ml_dtypes, dtype, dtype))
    assert _summary("y", made) == {"name": "y", "dtype": dtype, "shape": [0, 3]}
    assert _summary("y", np.ones((1,), made.dtype))["mean"] == 1


def test_random_inputs_are_seeded(dhc: Command, artifact: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert dhc("run", artifact, "-i", "random", "--seed", seed, "-o", f"{name}.npy").status == 0
    a, b, c = (np.load(f"{name}.npy") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "--input image=FILE"),
        (["-i", "absent.png"], 2, "absent.png"),
        (["-i", "imag=x.npy"], 2, "did you mean 'image'"),
        (["-i", "x.txt"], 2, ".npy, .npz, .png"),
        (["-i", "x.npy", "--pre", "imagnet"], 2, "did you mean 'imagenet'"),
        (["-i", "x.npy", "-o", "y.csv"], 2, ".npz"),
        (["-i", "x.npy", "-o", "there/y.npy"], 2, "no folder"),
        (["-i", "flat.npy"], 3, "shape"),
        (["-i", "complex.npy"], 3, "complex"),
        (["-i", "noise.npy"], 3, "no array"),
        (["-i", "noise.npz"], 3, "no .npz"),
        (["-i", "noise.png"], 3, "not an image"),
        (["-i", "x.npy", "--labels", "few.txt"], 2, "1 labels"),
    ],
)
def test_wrong_inputs(dhc: Command, artifact: Path, words: list[str], status: int, said: str) -> None:
    np.save("x.npy", image(1, 2, 3))
    np.save("flat.npy", np.zeros(5, np.float32))
    np.save("complex.npy", np.zeros((1, 3, 8, 8), np.complex64))
    for name in ("noise.npy", "noise.npz", "noise.png", "x.txt"):
        Path(name).write_bytes(b"\x01\x02noise" * 20)
    Path("few.txt").write_text("one\n")
    answer = dhc("run", artifact, *words)
    assert (answer.status, answer.out) == (status, "") or (answer.status == status and "--labels" in words)
    assert said in answer.err
    assert answer.err.startswith("error: ")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("size", "status"), [((60000, 60000), 8), ((MAX_PIXELS, 2), 8), ((100, 100), 3)])
def test_sizes_are_checked_before_decoding(dhc: Command, artifact: Path, size: tuple[int, int], status: int) -> None:
    pytest.importorskip("PIL", reason="needs the extra `imaging`")
    Path("bomb.png").write_bytes(png_header(*size))
    answer = dhc("run", artifact, "-i", "bomb.png")
    assert answer.status == status, answer.err
    assert "Traceback" not in answer.err


def test_dicom_sizes_are_checked_before_decoding(dhc: Command, artifact: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra `imaging`")
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as("bomb.dcm")
    assert dhc("run", artifact, "-i", "bomb.dcm").status == 8


def test_deflated_dicom_bombs_are_refused(dhc: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra `imaging`")
    import dhc.cli.pictures as pictures

    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091001, "OB", bytes(4 << 20))
    dataset.save_as("deflated.dcm")
    assert dhc("run", artifact, "-i", "deflated.dcm").status == 0
    monkeypatch.setattr(pictures, "_MAX_FILE", 2 << 20)
    assert dhc("run", artifact, "-i", "deflated.dcm").status == 8


def test_declared_sizes_of_arrays_are_checked(dhc: Command, artifact: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 36,)})
    Path("x.npy").write_bytes(header.getvalue() + b"1234")
    assert dhc("run", artifact, "-i", "x.npy").status == 3
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("image.npy", header.getvalue() + b"1234")
    answer = dhc("run", artifact, "-i", "x.npz")
    assert answer.status == 3 and "declares" in answer.err


def test_a_missing_extra_names_the_command(
    dhc: Command, artifact: Path, reds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    answer = dhc("run", artifact, "-i", reds)
    assert answer.status == 7
    assert "pip install 'dhc[imaging]'" in answer.err
    monkeypatch.setitem(sys.modules, "pydicom", None)
    Path("x.dcm").write_bytes(b"x")
    answer = dhc("run", artifact, "-i", "x.dcm", "--json")
    assert answer.status == 7
    assert "dhc[imaging]" in answer.data["error"]["hint"]


def test_preprocessing_is_listed(dhc: Command, artifact: Path) -> None:
    names = [entry["name"] for entry in dhc("run", artifact, "--pre", "list", "--json").data["preprocessing"]]
    assert names == list(PREPROCESSING)
    assert "imagenet" in dhc("run", artifact, "--pre", "list").out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [0, 51, 255]),
        ("unit", [0, 0.2, 1]),
        ("minmax", [0, 0.2, 1]),
        ("peak", [0, 0.2, 1]),
        ("centered", [-1, -0.6, 1]),
        ("centered127", [-127 / 128, -76 / 128, 1]),
        ("inverted", [1, 0.8, 0]),
        ("bgr", [1, 0.2, 0]),
        ("gray", [0.587 * 0.2 + 0.114] * 3),
        ("imagenet", [-0.485 / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("standard", [-0.92582, -0.46291, 1.38873]),
        ("window", [0, 0.01, 1]),
    ],
)
def test_every_preprocessing(name: str, expected: list[float]) -> None:
    picture = Picture(np.array([0, 51, 255], np.float32)[:, None, None], 0, 255, (50, 150))
    assert np.allclose(PREPROCESSING[name].apply(picture)[:, 0, 0], expected, atol=1e-4)


def test_every_preprocessing_is_tested() -> None:
    (mark,) = test_every_preprocessing.pytestmark
    assert {case[0] for case in mark.args[1]} == set(PREPROCESSING)
