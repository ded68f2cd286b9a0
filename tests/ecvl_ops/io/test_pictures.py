"""PNG, JPEG, TIFF and NumPy files: what is read is what the libraries themselves read, and what was written."""

from __future__ import annotations

import io as streams
from pathlib import Path

import numpy as np
import pytest

from dhc.ecvl_ops import io
from dhc.ecvl_ops.image import Image
from dhc.errors import ModelError, ShapeError, UnsupportedError, UsageError

pillow = pytest.importorskip("PIL.Image", reason="pillow is not installed")


def samples(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize(
    ("suffix", "shape", "dtype", "layout", "color"),
    [
        (".png", (5, 7), "uint8", "HW", "gray"),
        (".png", (5, 7), "uint16", "HW", "gray"),
        (".png", (5, 7, 3), "uint8", "HWC", "rgb"),
        (".png", (5, 7, 4), "uint8", "HWC", "rgba"),
        (".tif", (5, 7), "float32", "HW", "gray"),
        (".tif", (5, 7, 3), "uint16", "HWC", "rgb"),
        (".tif", (4, 5, 7), "int16", "DHW", "gray"),
        (".tif", (4, 5, 7, 3), "uint8", "DHWC", "rgb"),
        (".npy", (5, 7), "float64", "HW", "gray"),
        (".npy", (4, 5, 7), "int32", "DHW", "gray"),
    ],
)
def test_what_is_written_is_read(
    tmp_path: Path, suffix: str, shape: tuple, dtype: str, layout: str, color: str
) -> None:
    image = Image(samples(shape, dtype), layout, color)
    path = tmp_path / f"image{suffix}"
    io.write(image, path)
    found = io.read(path, trusted=True)
    assert (found.layout, found.color, found.values.dtype) == (layout, color, image.values.dtype)
    assert np.array_equal(found.values, image.values)
    header = io.probe(path, trusted=True)
    assert (header.shape, header.dtype, header.layout) == (shape, dtype, layout)
    part = io.read(path, trusted=True, region={"H": (1, 4), "W": (2, 7)})
    assert np.array_equal(
        part.values, np.take(np.take(image.values, range(1, 4), layout.index("H")), range(2, 7), layout.index("W"))
    )


def test_the_confined_process_gives_the_same(tmp_path: Path) -> None:
    image = Image(samples((40, 30, 3), "uint8"), "HWC", "rgb", metadata={"a": 1})
    path = tmp_path / "image.png"
    io.write(image, path)
    assert np.array_equal(io.read(path).values, image.values)
    assert np.array_equal(io.read(path.read_bytes()).values, image.values)
    with path.open("rb") as stream:
        assert np.array_equal(io.read(stream).values, image.values)
    assert io.probe(path) == io.probe(path, trusted=True)


def test_streams_are_written(tmp_path: Path) -> None:
    stream = streams.BytesIO()
    image = Image(samples((5, 7), "uint8"))
    io.write(image, stream, suffix=".png")
    assert np.array_equal(io.read(stream.getvalue(), trusted=True).values, image.values)
    with pytest.raises(UsageError, match="suffix"):
        io.write(image, streams.BytesIO())


def test_colours_of_16_bits_keep_all_bits() -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    for channels in (2, 3, 4):
        values = samples((6, 5, channels), "uint16")
        found = io.read(imagecodecs.png_encode(values), trusted=True)
        wanted = values if channels > 2 else values[..., [0, 0, 0, 1]]
        assert found.values.dtype == np.uint16 and np.array_equal(found.values, wanted)


_MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("1", "L", "RGB", "CMYK"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
}


@pytest.mark.parametrize(("codec", "mode"), [(codec, mode) for codec, modes in _MODES.items() for mode in modes])
def test_every_mode_is_what_pillow_makes_of_it(codec: str, mode: str) -> None:
    made = pillow.effect_noise((9, 6), 60).convert(mode if mode != "I;16" else "I").convert(mode)
    stream = streams.BytesIO()
    made.save(stream, codec)
    found = io.read(stream.getvalue(), trusted=True)
    opened = pillow.open(streams.BytesIO(stream.getvalue()))
    plain = "L" if found.values.dtype == np.uint8 else opened.mode
    wanted = np.asarray(opened.convert({"rgb": "RGB", "rgba": "RGBA"}.get(found.color, plain)))
    assert np.array_equal(found.values, wanted)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "I;16", "I", "F"])
def test_every_mode_of_tiff_is_what_pillow_makes_of_it(mode: str) -> None:
    made = pillow.effect_noise((9, 6), 60).convert(mode if mode != "I;16" else "I").convert(mode)
    stream = streams.BytesIO()
    made.save(stream, "TIFF")
    found = io.read(stream.getvalue(), trusted=True)
    assert np.array_equal(found.values, np.asarray(made.convert("RGB") if mode == "P" else made))


def test_pages_are_slices_or_single(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    values = samples((3, 8, 6), "uint16")
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, values, photometric="minisblack")
    assert np.array_equal(io.read(path, trusted=True).values, values)
    assert np.array_equal(io.read(path, page=2, trusted=True).values, values[2])
    assert np.array_equal(io.read(path, region={"D": (1, 3)}, trusted=True).values, values[1:3])
    with pytest.raises(UsageError, match="no page 3"):
        io.read(path, page=3, trusted=True)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "lzma", "zstd", "jpeg"])
@pytest.mark.parametrize("big", [False, True])
def test_compressions_of_tiff(tmp_path: Path, compression: str | None, big: bool) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    values = samples((64, 48, 3), "uint8")
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, values, photometric="rgb", compression=compression, bigtiff=big, tile=(16, 16))
    assert np.array_equal(io.read(path, trusted=True).values, tifffile.imread(path))


def test_a_pyramid_shows_its_levels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    values = samples((64, 48), "uint8")
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(values, subifds=1, tile=(16, 16))
        writer.write(values[::2, ::2], subfiletype=1, tile=(16, 16))
    header = io.probe(tmp_path / "p.tif", trusted=True)
    assert header.levels == ((64, 48), (32, 24))
    assert np.array_equal(io.read(tmp_path / "p.tif", trusted=True).values, values)


def test_spacing_survives_tiff(tmp_path: Path) -> None:
    image = Image(samples((4, 5, 6), "uint8"), "DHW", spacing=(2.5, 0.5, 0.25))
    io.write(image, tmp_path / "v.tif")
    assert np.allclose(io.read(tmp_path / "v.tif", trusted=True).spacing, image.spacing, rtol=1e-6)


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    for suffix, image in (
        (".png", Image(samples((4, 4), "float32"))),
        (".jpg", Image(samples((4, 4, 4), "uint8"), "HWC", "rgba")),
        (".png", Image(samples((4, 4, 3), "uint8"), "HWC", "hsv")),
    ):
        with pytest.raises(UnsupportedError, match="cannot hold"):
            io.write(image, tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnsupportedError, match="use "):
        io.write(Image(samples((4, 4), "uint8")), tmp_path / "x.xyz")
    with pytest.raises(ShapeError, match="cannot be left out"):
        io.write(Image(samples((2, 4, 4), "uint8"), "NHW"), tmp_path / "x.png")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        io.read(tmp_path / "absent.png")
    with pytest.raises(UsageError, match="not a file"):
        io.read(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ModelError, match="empty"):
        io.read(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(UnsupportedError, match="none of the image formats"):
        io.read(tmp_path / "text.png")
    io.write(Image(samples((4, 4), "uint8")), tmp_path / "x.png")
    with pytest.raises(UsageError, match="not within 0:4"):
        io.read(tmp_path / "x.png", region={"H": (2, 5)})
    with pytest.raises(UsageError, match="axes HW"):
        io.read(tmp_path / "x.png", region={"D": (0, 1)})


def test_arrays_with_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], object))
    with pytest.raises(UnsupportedError, match="are not images"):
        io.read(tmp_path / "o.npy")
