"""Opening DICOM data sets: what is unpacked and how large it may become is settled before anything is decoded."""

from __future__ import annotations

import io
import zlib
from typing import Any

from dhc_runtime.errors import DhcError, ModelError, ResourceError, UnsupportedError

from dhc.ecvl_ops.io.formats import missing
from dhc.ecvl_ops.io.limits import Limits, check_file
from dhc.ecvl_ops.io.source import Source

_DEFLATED = "1.2.840.10008.1.2.1.99"
_STEP = 1 << 22


def pydicom() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pydicom as library
    except ImportError:
        raise missing("reading and writing DICOM files (pydicom)") from None
    return library


def opened(source: Source, limits: Limits, pixels: bool = True) -> Any:
    """The data set.

    Args:
        source: the file.
        limits: of what it may unpack to.
        pixels: also the pixel data.

    Raises:
        ModelError: it is damaged or no DICOM file.
        ResourceError: it is longer, or unpacks to more, than allowed.
    """
    library = pydicom()
    check_file(source.size, limits, source.name)
    try:
        with source.open() as stream:
            _check_inflated(stream, limits, source.name)
            stream.seek(0)
            return library.dcmread(stream, force=True, stop_before_pixels=not pixels)
    except DhcError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises whatever a damaged file leads it to
        raise damaged(error, source.name) from None


def damaged(error: Exception, where: str) -> Exception:
    """The error for what pydicom or one of its decoders raised."""
    text = " ".join((str(error) or type(error).__name__).split())
    if isinstance(error, ImportError) or "missing required dependencies" in text or "plugins are missing" in text:
        return missing(f"the compression of this DICOM file ({text[:160]})")
    return ModelError(
        f"the DICOM file cannot be decoded: {text[:300]}", where, "it is damaged, or lacks what an image needs"
    )


def _check_inflated(stream: Any, limits: Limits, where: str) -> None:
    """Refuses deflated data sets that unpack to more than an image may take: pydicom unpacks them whole."""
    library = pydicom()
    try:
        library.filereader.read_preamble(stream, False)
        meta = library.filereader._read_file_meta_info(stream)
    except library.errors.InvalidDicomError:
        return  # no meta information, then no deflation either
    if str(meta.get("TransferSyntaxUID", "")) != _DEFLATED:
        return
    unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while block := unpacker.unconsumed_tail or stream.read(1 << 20):
        total += len(unpacker.decompress(block, _STEP))
        if total > min(limits.values, 1 << 28) and total > 100 * stream.tell():
            raise ResourceError(f"the deflated DICOM file unpacks to more than {total} bytes", limits.values, where)
        if total > limits.values:
            raise ResourceError(
                f"the deflated DICOM file unpacks to more than {limits.values} bytes", limits.values, where
            )
        if unpacker.eof:
            return


def require_image(dataset: Any, where: str) -> None:
    """Refuses data sets without pixels.

    Raises:
        UnsupportedError: it is a plan, a report, a waveform or the like.
    """
    if "PixelData" in dataset or "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        return
    if not len(dataset):
        raise ModelError("the file is not a DICOM file", where)
    kind = getattr(getattr(dataset, "SOPClassUID", None), "name", None) or "DICOM object"
    raise UnsupportedError(f"this {kind} holds no image", where=where)


def as_bytes(dataset: Any) -> bytes:
    """The file's bytes."""
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
