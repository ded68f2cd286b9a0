"""DICOM: samples as pydicom decodes them, their meaning, places in the patient, series, and what is refused."""

from __future__ import annotations

import io as streams
import warnings
from pathlib import Path

import numpy as np
import pytest

from dhc.ecvl_ops import io
from dhc.ecvl_ops.image import Image
from dhc.errors import DhcError, ModelError, UnsupportedError, UsageError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

_NO_IMAGE = {
    "ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "UN_sequence.dcm", "empty_charset_LEI.dcm", "no_meta.dcm",
    "no_meta_group_length.dcm", "priv_SQ.dcm", "reportsi.dcm", "reportsi_with_empty_number_tags.dcm", "rtplan.dcm",
    "rtplan_truncated.dcm", "rtstruct.dcm", "test-SR.dcm", "waveform_ecg.dcm", "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
}  # fmt: skip
_DAMAGED = {"JPEG2000-embedded-sequence-delimiter.dcm", "MR_truncated.dcm", "badVR.dcm"}


def shipped() -> list[Path]:
    """The test files inside of pydicom's package."""
    return sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))


def test_pydicom_ships_its_files() -> None:
    assert len(shipped()) > 60


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.name)
def test_every_file_of_pydicom_is_read_as_pydicom_reads_it_or_refused(path: Path) -> None:
    if path.name in _NO_IMAGE | _DAMAGED:
        with pytest.raises((UnsupportedError, ModelError)) as caught:
            io.read(path, trusted=True)
        assert path.name in str(caught.value)
        return
    image = io.read(path, rescale=False, trusted=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        stored = pydicom.pixels.pixel_array(dataset)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            stored = pydicom.pixels.apply_color_lut(stored, dataset)
    wanted = -1.0 - stored if dataset.PhotometricInterpretation == "MONOCHROME1" else stored
    assert image.values.shape == wanted.shape
    assert np.array_equal(image.values.astype(np.float64), np.asarray(wanted, np.float64))


def test_lossless_jpeg_of_the_shared_data_is_the_uncompressed_image(shared_data: Path) -> None:
    files = {p.name.rsplit("_", 1)[1]: p for p in (shared_data / "dicom" / "transfer_syntaxes").glob("*.dcm")}
    plain = io.read(files["1.2.840.10008.1.2.1.dcm"])
    assert plain.unit == "hu" and plain.values.min() < -900
    for syntax in ("1.2.1.99", "1.2.4.70", "1.2.4.80", "1.2.4.90", "1.2.5"):
        found = io.read(files[f"1.2.840.10008.{syntax}.dcm"])
        assert np.array_equal(found.values, plain.values), syntax
        assert found.spacing == plain.spacing
    lossy = io.read(files["1.2.840.10008.1.2.4.51.dcm"])  # 12 bits, lossy
    assert np.abs(lossy.values - plain.values).mean() < 20


def slice_file(position: float, values: np.ndarray, uid: str = "1.2.3", **more: object) -> bytes:
    """A CT slice."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", pydicom.uid.generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = uid, "1.2", "CT"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(values.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.25], 2
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-10, -20, position]
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    stream = streams.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def numbered(n: int) -> np.ndarray:
    return np.full((4, 6), n, np.uint16) + np.arange(24, dtype=np.uint16).reshape(4, 6)


def write_series(folder: Path, positions: list[float], **more: object) -> None:
    for n, position in enumerate(positions):
        # Names in another order than positions.
        (folder / f"{(n * 7) % 11:02d}.dcm").write_bytes(slice_file(position, numbered(100 * n), **more))


def test_a_series_is_sorted_by_position(tmp_path: Path) -> None:
    write_series(tmp_path, [4.0, 0.0, 2.0, 6.0])
    volume = io.read_series(tmp_path, trusted=True)
    assert volume.layout == "DHW" and volume.values.dtype == np.int32 and volume.unit == "hu"
    assert [int(s[0, 0]) + 1024 for s in volume.values] == [100, 200, 0, 300]
    assert np.allclose(volume.spacing, (2.0, 0.5, 0.25)) and np.allclose(volume.origin, (-10, -20, 0))
    assert np.allclose((volume.affine @ [3, 2, 4, 1])[:3], [-10 + 4 * 0.25, -20 + 2 * 0.5, 6])
    part = io.read_series(tmp_path, trusted=True, region={"D": (1, 3), "W": (2, 4)})
    assert np.array_equal(part.values, volume.values[1:3, :, 2:4])
    files = sorted(tmp_path.iterdir())
    assert np.array_equal(io.read_series(files[::-1], trusted=True).values, volume.values)


def test_missing_uneven_and_doubled_slices_are_said(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 2.0, 6.0, 8.0, 10.0])
    with pytest.raises(ModelError, match=r"slices are missing.* 4 mm after .*07\.dcm"):
        io.read_series(tmp_path, trusted=True)
    kept = io.read_series(tmp_path, gaps="keep", trusted=True)
    assert kept.metadata["gaps"] == [[1, 4.0]] and kept.values.shape[0] == 5
    for name, positions in (("uneven", [0.0, 2.0, 4.3, 6.0, 8.0]), ("lies where", [0.0, 2.0, 2.0, 4.0])):
        folder = tmp_path / name
        folder.mkdir()
        write_series(folder, positions)
        with pytest.raises(ModelError, match=name):
            io.read_series(folder, trusted=True)


def test_what_makes_no_volume_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 2.0, 4.0])
    (tmp_path / "scout.dcm").write_bytes(slice_file(6.0, numbered(0), ImageOrientationPatient=[1, 0, 0, 0, 0, -1]))
    with pytest.raises(ModelError, match="not parallel"):
        io.read_series(tmp_path, trusted=True)
    (tmp_path / "scout.dcm").write_bytes(slice_file(6.0, numbered(0)[:3]))
    with pytest.raises(ModelError, match=r"the slice has \(3, 6\) samples"):
        io.read_series(tmp_path, trusted=True)
    (tmp_path / "scout.dcm").write_bytes(slice_file(6.0, numbered(0), uid="1.2.4"))
    with pytest.raises(UsageError, match="2 DICOM series"):
        io.read_series(tmp_path, trusted=True)
    assert io.read_series(tmp_path, series="1.2.3", trusted=True).values.shape[0] == 3
    with pytest.raises(UsageError, match="no series 9"):
        io.read_series(tmp_path, series="9", trusted=True)


def test_a_tilted_gantry_keeps_its_shear(tmp_path: Path) -> None:
    for n in range(4):
        content = slice_file(0.0, numbered(n), ImagePositionPatient=[-10, -20 + n, 2.0 * n])
        (tmp_path / f"{n}.dcm").write_bytes(content)
    volume = io.read_series(tmp_path, trusted=True)
    assert np.allclose((volume.affine @ [3, 0, 0, 1])[:3], [-10, -17, 6])
    assert volume.metadata["shear"] == pytest.approx(3.0)


def test_monochrome1_is_turned_and_windows_are_applied() -> None:
    values = np.arange(24, dtype=np.uint16).reshape(4, 6)
    plain = io.read(slice_file(0, values, WindowCenter=-1014, WindowWidth=10), trusted=True)
    assert np.array_equal(plain.values, values.astype(np.int32) - 1024)
    turned = io.read(slice_file(0, values, PhotometricInterpretation="MONOCHROME1"), trusted=True)
    assert np.array_equal(turned.values, 65535 - 2048 - (values.astype(np.int32) - 1024))
    shown = io.read(slice_file(0, values, WindowCenter=-1014, WindowWidth=10), window=True, trusted=True)
    assert np.allclose(shown.values, np.clip((values - 5.0) / 10, 0, 1)) and shown.unit == "normalized"


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "color"),
    [
        ((4, 6), "uint8", "HW", "gray"),
        ((4, 6), "uint16", "HW", "gray"),
        ((4, 6), "int16", "HW", "gray"),
        ((5, 7, 3), "uint8", "HWC", "rgb"),
        ((3, 4, 6), "int16", "DHW", "gray"),
        ((3, 5, 7, 3), "uint8", "DHWC", "rgb"),
    ],
)
def test_secondary_captures_are_read_back(tmp_path: Path, shape: tuple, dtype: str, layout: str, color: str) -> None:
    rng = np.random.default_rng(1)
    info = np.iinfo(dtype)
    image = Image(rng.integers(info.min, info.max, shape, dtype, endpoint=True), layout, color)
    rank = len(image.spatial)
    if rank == 3:
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, ::-1] * [2.0, 0.5, 0.25] * np.array([1, -1, -1.0])
        affine[:3, 3] = [1, 2, 3]
        image = image.with_affine(affine)
    io.write(image, tmp_path / "x.dcm", description="test")
    found = io.read(tmp_path / "x.dcm", trusted=True)
    assert found.layout == layout and np.array_equal(found.values, image.values)
    if rank == 3:
        assert np.allclose(found.affine, image.affine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pydicom.dcmread(tmp_path / "x.dcm").Rows == image.spatial_shape[-2]


def test_floats_are_captured_in_16_bits(tmp_path: Path) -> None:
    values = np.linspace(-3, 7, 24, dtype=np.float32).reshape(4, 6)
    io.write(Image(values), tmp_path / "x.dcm")
    assert np.abs(io.read(tmp_path / "x.dcm", trusted=True).values - values).max() < 10 / 65535
    with pytest.raises(UnsupportedError, match="not finite"):
        io.write(Image(values * np.inf), tmp_path / "y.dcm")
    assert not (tmp_path / "y.dcm").exists()


def test_a_missing_codec_names_the_command(monkeypatch) -> None:
    path = next(p for p in shipped() if p.name == "MR_small_RLE.dcm")

    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("Unable to decompress: missing required dependencies: pylibjpeg")

    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", refuse)
    with pytest.raises(DhcError, match=r"pip install 'dhc\[imaging\]'"):
        io.read(path, trusted=True)


def test_the_series_of_the_shared_data(shared_data: Path) -> None:
    volume = io.read_series(shared_data / "dicom" / "mr_brain_series")
    assert volume.layout == "DHW" and volume.values.shape[0] >= 15 and not volume.metadata["gaps"]
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(shared_data / "dicom" / "mr_brain_series")))
    theirs = reader.Execute()
    found = itk.GetArrayFromImage(theirs)
    assert np.array_equal(volume.values, found) or np.array_equal(volume.values[::-1], found)
    last = found.shape[0] - 1
    ours = sorted(tuple((volume.affine @ [k, 0, 0, 1])[:3]) for k in (0, last))
    assert np.allclose(ours, sorted(theirs.TransformIndexToPhysicalPoint((0, 0, k)) for k in (0, last)), atol=0.02)
