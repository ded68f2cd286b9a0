"""Damaged image files give an error or an image: no crash, no hang over a second of CPU, no memory over the budget."""

from __future__ import annotations

import io as streams
import os
import random
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

from dhc.ecvl_ops import io
from dhc.ecvl_ops.image import Image
from dhc.errors import DhcError
from tests.nightly.mutation import CpuTimeError, Report, run_mutants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and timers of Linux processes")

NIGHTLY = int(os.environ.get("DHC_IMAGE_MUTANTS", "5000"))
"""Mutants of each format; 100,000 are tried before a release."""
LIMITS = io.Limits(values=64 << 20, plane=1 << 22, file=1 << 20, seconds=1.0)
_NUMBERS = (0, 1, -1, 2, 7, 64, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def _written(suffix: str, *images: Image) -> list[bytes]:
    made = []
    for image in images:
        stream = streams.BytesIO()
        io.write(image, stream, suffix=suffix)
        made.append(stream.getvalue())
    return made


def _noise(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def _pictures() -> tuple[Image, ...]:
    return Image(_noise((9, 7), "uint8")), Image(_noise((9, 7, 3), "uint8"), "HWC", "rgb")


def _volume() -> Image:
    return Image(_noise((3, 5, 4), "int16"), "DHW", spacing=(2, 1, 1), origin=(0, 0, 0))


def _png() -> list[bytes]:
    return _written(".png", *_pictures(), Image(_noise((9, 7), "uint16")))


def _jpeg() -> list[bytes]:
    return _written(".jpg", *_pictures())


def _gif_and_more() -> list[bytes]:
    from PIL import Image as Pictures

    made = []
    for codec in ("GIF", "BMP", "WEBP", "PPM"):
        stream = streams.BytesIO()
        Pictures.fromarray(_noise((9, 7, 3), "uint8")).save(stream, codec)
        made.append(stream.getvalue())
    return made


def _tiff() -> list[bytes]:
    import tifffile

    made = _written(".tif", *_pictures(), _volume())
    for options in ({"bigtiff": True}, {"compression": "lzw"}, {"tile": (16, 16)}, {"compression": "packbits"}):
        stream = streams.BytesIO()
        tifffile.imwrite(stream, _noise((20, 18), "uint16"), **options)
        made.append(stream.getvalue())
    return made


def _nifti() -> list[bytes]:
    return _written(".nii", _volume()) + _written(".nii.gz", _volume(), Image(_noise((2, 3, 5, 4), "uint8"), "NDHW"))


def _dicom() -> list[bytes]:
    import pydicom

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    files = [path.read_bytes() for path in sorted(folder.glob("*.dcm")) if path.stat().st_size < 12_000]
    return files + _written(".dcm", *_pictures(), _volume()) * 3


def _npy() -> list[bytes]:
    return _written(".npy", *_pictures()[:1], _volume())


_SAMPLES = _noise((3, 5, 4), "int16").tobytes()


def _nrrd() -> list[bytes]:
    import gzip

    head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 3\nspace: left-posterior-superior\nendian: little\n"
    head += b"space directions: (1,0,0) (0,1,0) (0,0,2)\nspace origin: (0,0,0)\nkinds: domain domain domain\n"
    return [head + b"encoding: raw\n\n" + _SAMPLES, head + b"encoding: gzip\n\n" + gzip.compress(_SAMPLES, mtime=0)]


def _metaimage() -> list[bytes]:
    import zlib

    head = b"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nElementSpacing = 1 1 2\n"
    head += b"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nDimSize = 4 5 3\nElementType = MET_SHORT\n"
    packed = zlib.compress(_SAMPLES)
    return [
        head + b"ElementDataFile = LOCAL\n" + _SAMPLES,
        head + b"CompressedData = True\nElementDataFile = LOCAL\n" + packed,
    ]


def _edf() -> list[bytes]:
    from tests.ecvl_ops.io.test_signals import edf

    return [edf(["Fp1", "Fp2"], [5, 5], 4)[0], edf(["ECG", "EDF Annotations"], [4, 3], 3)[0], edf(["A"], [4], 3, 3)[0]]


FORMATS: dict[str, Callable[[], list[bytes]]] = {
    "PNG": _png, "JPEG": _jpeg, "other pictures": _gif_and_more, "TIFF": _tiff, "NIfTI": _nifti, "DICOM": _dicom,
    "NumPy": _npy, "NRRD": _nrrd, "MetaImage": _metaimage, "EDF": _edf,
}  # fmt: skip


@cache
def originals(kind: str) -> tuple[bytes, ...]:
    """Small files of a format."""
    return tuple(FORMATS[kind]())


def mutant(kind: str, index: int) -> bytes:
    """The mutant of a number: bytes changed, cut out, doubled, moved between files, numbers of 2 and 4 bytes set."""
    rng = random.Random(index)
    files = originals(kind)
    data = bytearray(rng.choice(files))
    for _ in range(rng.randint(1, 4)):
        # Headers are where it matters.
        at = rng.randrange(min(len(data), 600) if rng.random() < 0.7 else len(data)) if data else 0
        length = rng.randint(1, 16)
        change = rng.randrange(8)
        if change == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1 and data:
            data[at] = rng.randrange(256)
        elif change == 2:
            del data[at : at + length]
        elif change == 3:
            data[at:at] = data[at : at + length]
        elif change == 4:
            other = rng.choice(files)
            start = rng.randrange(len(other))
            data[at : at + length] = other[start : start + length]
        elif change == 5:
            size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
            data[at : at + size] = (rng.choice(_NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, order)
        elif change == 6:
            data[at : at + 1] = str(rng.choice(_NUMBERS)).encode()
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def attempt(data: bytes, index: int) -> str:
    """Reads a mutant as the confined process does; ``image`` or the name of dhc's error.

    Where a codec takes too long, which no check of ours can foresee, the confined process must end in time.
    """
    try:
        return _read(data, index)
    except CpuTimeError:
        with pytest.raises(DhcError):
            io.read(data, limits=LIMITS, window=index % 8 == 1)
        return "confined"


def _read(data: bytes, index: int) -> str:
    try:
        if index % 4 == 0:
            io.probe(data, limits=LIMITS, trusted=True)
        image = io.read(data, limits=LIMITS, trusted=True, window=index % 8 == 1)
        assert image.values.nbytes <= LIMITS.values
    except DhcError as error:
        if not str(error):
            raise AssertionError("an error without a message") from error
        return type(error).__name__
    return "image"


def _check(report: Report, count: int) -> None:
    print(f"{count / max(report.seconds, 1e-9):.0f} mutants/s: {dict(report.outcomes.most_common())}")
    assert not report.findings, "\n".join(f"mutant({i}): {what}" for i, what in report.findings[:10])
    assert sum(report.outcomes.values()) == count
    assert report.outcomes["image"] > count // 50
    assert report.outcomes["confined"] <= count // 1000


@pytest.mark.parametrize("kind", FORMATS)
def test_originals_are_read(kind: str) -> None:
    outcomes = [attempt(data, 1) for data in originals(kind)]
    assert outcomes.count("image") >= max(len(outcomes) // 2, 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_some_mutants(kind: str) -> None:
    for data in originals(kind):  # imports before the fork
        attempt(data, 1)
    _check(run_mutants(200, make=partial(mutant, kind), trial=attempt), 200)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", FORMATS)
def test_many_mutants(kind: str) -> None:
    for data in originals(kind):
        attempt(data, 1)
    workers = min(os.cpu_count() or 1, 2)
    _check(run_mutants(NIGHTLY, workers=workers, make=partial(mutant, kind), trial=attempt), NIGHTLY)
