"""NIfTI, NRRD, MetaImage: samples and places in the patient, against nibabel and SimpleITK."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dhc.ecvl_ops import io
from dhc.ecvl_ops.image import Image
from dhc.errors import ModelError, UnsupportedError

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")

_TURNS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def tilted(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Directions: a permutation with flips, turned by 10 and 20 degrees."""
    a, b = np.deg2rad(10), np.deg2rad(20)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return turn @ np.eye(3)[:, list(order)] * np.array(signs)


def placed(directions: np.ndarray) -> Image:
    affine = np.eye(4)
    affine[:3, :3] = directions * [2.0, 0.75, 1.25]
    affine[:3, 3] = [10, -20, 30]
    values = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    return Image(values, "DHW").with_affine(affine)


@pytest.mark.parametrize(("order", "signs"), _TURNS)
def test_all_48_orientations_lie_where_nibabel_and_simpleitk_say(tmp_path: Path, order: tuple, signs: tuple) -> None:
    image = placed(tilted(order, signs))
    path = tmp_path / "volume.nii"
    io.write(image, path)
    found = io.read(path, trusted=True)
    assert np.array_equal(found.values, image.values)
    assert np.allclose(found.affine, image.affine, atol=1e-4)
    loaded = nibabel.load(path)
    for index in itertools.product((0, 3), (0, 4), (0, 5)):
        place = (image.affine @ [*index, 1])[:3]
        theirs = nibabel.affines.apply_affine(loaded.affine, index[::-1])
        assert np.allclose(place * [-1, -1, 1], theirs, atol=1e-4)
        assert np.asarray(loaded.dataobj)[index[::-1]] == image.values[index]
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    seen = itk.ReadImage(str(path))
    assert np.array_equal(itk.GetArrayFromImage(seen), image.values)
    assert np.allclose(seen.TransformIndexToPhysicalPoint((5, 4, 3)), (image.affine @ [3, 4, 5, 1])[:3], atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_what_simpleitk_writes_is_read(tmp_path: Path, suffix: str, compress: bool, dtype: str) -> None:
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    values = (np.arange(4 * 5 * 6).reshape(4, 5, 6) % 251).astype(dtype)
    made = itk.GetImageFromArray(values)
    made.SetSpacing((1.25, 0.75, 2.0))
    made.SetOrigin((10, -20, 30))
    directions = tilted((1, 0, 2), (1, -1, 1))
    made.SetDirection(directions.ravel())
    path = tmp_path / f"volume{suffix}"
    itk.WriteImage(made, str(path), useCompression=compress)
    found = io.read(path, trusted=True)
    assert found.values.dtype == dtype and np.array_equal(found.values, values)
    assert np.allclose((found.affine @ [3, 4, 5, 1])[:3], made.TransformIndexToPhysicalPoint((5, 4, 3)))
    part = io.read(path, trusted=True, region={"D": (1, 3), "W": (2, 6)})
    assert np.array_equal(part.values, values[1:3, :, 2:6])
    assert np.allclose((part.affine @ [0, 0, 0, 1])[:3], made.TransformIndexToPhysicalPoint((2, 0, 1)))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_pictures_and_colours_of_simpleitk(tmp_path: Path, suffix: str) -> None:
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    flat = np.arange(30, dtype=np.uint8).reshape(5, 6)
    colored = np.arange(4 * 5 * 6 * 3, dtype=np.uint16).astype(np.uint8).reshape(4, 5, 6, 3)
    for values, vector, layout in ((flat, False, "HW"), (colored, True, "DHWC")):
        made = itk.GetImageFromArray(values, isVector=vector)
        itk.WriteImage(made, str(tmp_path / f"x{suffix}"))
        found = io.read(tmp_path / f"x{suffix}", trusted=True)
        assert found.layout == layout and np.array_equal(found.values, values)


def test_samples_in_another_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mha").write_bytes(
        b"ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n"
    )
    with pytest.raises(UnsupportedError, match="another file"):
        io.read(tmp_path / "a.mha")
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 2 2\nencoding: raw\ndata file: /etc/passwd\n\n"
    )
    with pytest.raises(UnsupportedError, match="another file"):
        io.read(tmp_path / "a.nrrd")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_nifti_is_what_nibabel_reads(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = (np.arange(3 * 4 * 5).reshape(3, 4, 5) % 120).astype(dtype)
    path = tmp_path / f"v{suffix}"
    io.write(Image(values, "DHW"), path)
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj).T, values)
    for trusted in (False, True):
        assert np.array_equal(io.read(path, trusted=trusted).values, values)
    part = io.read(path, region={"D": (1, 2), "H": (1, 3)}, trusted=True)
    assert np.array_equal(part.values, values[1:2, 1:3])
    assert io.read(path.read_bytes(), trusted=True).values.tobytes() == values.tobytes()


def test_scaled_nifti_gives_real_values(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    made = nibabel.Nifti1Image(values.T, np.eye(4))
    made.header.set_slope_inter(0.5, -3.0)
    content = bytearray(made.to_bytes())
    content[112:120] = np.array([0.5, -3.0], "<f4").tobytes()
    found = io.read(bytes(content), trusted=True)
    assert found.values.dtype == np.float32 and np.array_equal(found.values, values * np.float32(0.5) - 3)
    assert np.array_equal(io.read(bytes(content), rescale=False, trusted=True).values, values)


def test_time_and_colours_in_nifti(tmp_path: Path) -> None:
    series = Image(np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5), "NDHW")
    io.write(series, tmp_path / "t.nii")
    assert np.array_equal(io.read(tmp_path / "t.nii", trusted=True).values, series.values)
    colored = Image(np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3), "DHWC", "rgb")
    io.write(colored, tmp_path / "c.nii.gz")
    found = io.read(tmp_path / "c.nii.gz", trusted=True)
    assert found.layout == "DHWC" and np.array_equal(found.values, colored.values)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    image = placed(np.eye(3))
    for name in ("a.nii.gz", "b.nii.gz"):
        io.write(image, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_truncated_volumes_are_refused(tmp_path: Path) -> None:
    for suffix in (".nii", ".nii.gz"):
        io.write(placed(np.eye(3)), tmp_path / f"v{suffix}")
        content = (tmp_path / f"v{suffix}").read_bytes()
        with pytest.raises(ModelError):
            io.read(content[: len(content) - 20], trusted=True)


def test_every_file_of_nibabel_is_read_as_nibabel_reads_it_or_refused() -> None:
    folder = Path(nibabel.__file__).parent / "tests" / "data"
    files = sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")])
    if not files:
        pytest.skip("nibabel came without its test files")
    read = 0
    for path in files:
        try:
            image = io.read(path, trusted=True)
        except UnsupportedError as error:
            assert "are not read" in str(error)
            continue
        read += 1
        wanted = np.squeeze(nibabel.load(path).get_fdata(dtype=np.float64).T)
        assert np.allclose(np.squeeze(image.values), wanted, rtol=1e-6, atol=1e-6, equal_nan=True), path.name
    assert read >= 6
