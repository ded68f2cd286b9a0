"""DICOM images: single files with one or many frames. A series of files is `dicom_series`.

Stored numbers become real values (HU for CT) by the linear map or the table that the file names; MONOCHROME1 is turned
so that larger is brighter, palettes become RGB.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from dhc_runtime.errors import DhcError, ModelError, UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io import dicom_codecs
from dhc.ecvl_ops.io.codestream import check_frame
from dhc.ecvl_ops.io.dicom_file import damaged, opened, require_image
from dhc.ecvl_ops.io.dicom_geometry import Plane, frame_value, numbers, plane, stacked
from dhc.ecvl_ops.io.formats import Header, Request
from dhc.ecvl_ops.io.limits import Limits, check_declared, check_stored
from dhc.ecvl_ops.io.region import region_shape, slices
from dhc.ecvl_ops.io.source import Source

_TEXTS = (
    "Modality", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID",
    "SeriesDescription", "BodyPartExamined", "PhotometricInterpretation", "RescaleType", "Units", "PatientPosition",
)  # fmt: skip
_NUMBERS = ("SliceThickness", "SpacingBetweenSlices", "InstanceNumber", "RepetitionTime", "EchoTime", "KVP")


def probe(source: Source, limits: Limits) -> Header:
    """What the data set says, without decoding pixels."""
    dataset = opened(source, limits)
    return _header(dataset, source, limits)


def read(source: Source, limits: Limits, request: Request) -> Image:
    """The image: ``HW`` or ``HWC``; with several frames ``DHW`` or ``DHWC``."""
    dataset = opened(source, limits)
    return image_of(dataset, source, limits, request)


def image_of(dataset: Any, source: Source, limits: Limits, request: Request) -> Image:
    """The image of an open data set."""
    header = _header(dataset, source, limits)
    part = slices(header.layout, header.shape, request.region, source.name)
    frames = range(part[0].start, part[0].stop) if "D" in header.layout else range(1)
    inner = part[1:] if "D" in header.layout else part
    check_declared(region_shape(part), np.int32, limits, source.name)
    try:
        order = list(header.metadata.get("order") or range(max(frames.stop, 1)))
        for n in frames:
            check_frame(dataset, order[n], source.name)
        values = np.stack([_frame(dataset, order[n], request)[inner] for n in frames])
    except (DhcError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise damaged(error, source.name) from None
    metadata = {k: v for k, v in header.metadata.items() if k != "order"}
    if "D" not in header.layout:
        values = values[0]
    unit = "normalized" if request.window else header.unit if request.rescale else "raw"
    image = Image(np.ascontiguousarray(values), header.layout, header.color, unit=unit, metadata=metadata)
    return _placed(image, dataset, header, order, part)


def write(image: Image, stream: BinaryIO, **options: Any) -> None:
    """Writes a secondary capture, see `dhc.ecvl_ops.io.dicom_write`."""
    from dhc.ecvl_ops.io.dicom_write import write as write_capture

    write_capture(image, stream, **options)


# ---- what the data set says ------------------------------------------------------------------------------------------


def _header(dataset: Any, source: Source, limits: Limits) -> Header:
    require_image(dataset, source.name)
    try:
        rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        samples, frames = int(dataset.get("SamplesPerPixel") or 1), int(dataset.get("NumberOfFrames") or 1)
        bits = int(dataset.get("BitsAllocated") or 0)
        photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
        metadata = _metadata(dataset)
        planes = [plane(dataset, n) for n in range(min(frames, 10_000))]
    except (DhcError, MemoryError):
        raise
    except Exception as error:  # elements of the wrong kind
        raise damaged(error, source.name) from None
    if bits not in (1, 8, 16, 32, 64) or samples not in (1, 3, 4):
        raise ModelError(f"the DICOM file declares {samples} samples of {bits} bits", source.name)
    if frames > 10_000:
        raise UnsupportedError(f"the DICOM file has {frames} frames", where=source.name)
    colors = 3 if photometric == "PALETTE COLOR" else samples
    color = {1: "gray", 3: "rgb", 4: "rgba"}[colors]
    shape: tuple[int, ...] = (rows, columns) if colors == 1 else (rows, columns, colors)
    layout = "HW" if colors == 1 else "HWC"
    if frames > 1:
        shape, layout = (frames, *shape), "D" + layout
    check_declared((rows, columns), np.uint8, limits, source.name)
    check_declared(shape, np.float32, limits, source.name)
    _check_length(dataset, rows * columns * samples * frames, bits, photometric, source)
    stack = stacked(planes)
    spacing = planes[0].spacing
    if frames > 1:
        between = (
            stack.step or _positive(dataset.get("SpacingBetweenSlices")) or _positive(dataset.get("SliceThickness"))
        )
        spacing = (between, *spacing) if spacing and between else ()
        metadata |= {"order": stack.order, "gaps": [list(gap) for gap in stack.gaps]}
    unit = "hu" if _is_hu(dataset, metadata) else "raw"
    return Header("DICOM", shape, layout, _dtype(dataset, colors), color, spacing, unit, 1, (), metadata)


def _check_length(dataset: Any, samples: int, bits: int, photometric: str, source: Source) -> None:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is not None and syntax.is_private:
        raise UnsupportedError(f"the private transfer syntax {syntax} is not read", where=source.name)
    if syntax is None or not syntax.is_compressed:
        pixels = next(dataset[k].value for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in dataset)
        stored = len(pixels) if isinstance(pixels, bytes) else 0
        declared = samples * bits // 8
        if photometric == "YBR_FULL_422":
            declared = declared * 2 // 3
        check_stored(declared, stored, source.name)


def _metadata(dataset: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _TEXTS:
        value = dataset.get(name)
        if value not in (None, ""):
            found[name] = str(value)[:1000]
    for name in _NUMBERS:
        value = numbers(dataset.get(name), 1) if dataset.get(name) not in (None, "") else None
        if value:
            found[name] = value[0]
    for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6)):
        values = numbers(dataset.get(name), count) if dataset.get(name) else None
        if values:
            found[name] = values
    window = window_of(dataset)
    if window is not None:
        found["window"] = list(window)
    return found


def window_of(dataset: Any) -> tuple[float, float] | None:
    """Lower and upper end of the first window that the data set names, in real values."""
    center = frame_value(dataset, 0, "FrameVOILUTSequence", "WindowCenter")
    width = frame_value(dataset, 0, "FrameVOILUTSequence", "WindowWidth")

    def first(value: Any) -> float | None:
        many = value is not None and hasattr(value, "__len__") and not isinstance(value, str)
        found = (
            numbers(value[0] if many and len(value) else None if many else value, 1)
            if value not in (None, "")
            else None
        )
        return found[0] if found else None

    middle, wide = first(center), first(width)
    return None if middle is None or wide is None or wide <= 0 else (middle - wide / 2, middle + wide / 2)


def _rescale(dataset: Any, frame: int) -> tuple[float, float]:
    values = []
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        given = frame_value(dataset, frame, "PixelValueTransformationSequence", keyword)
        found = numbers(given, 1) if given not in (None, "") else None
        values.append(found[0] if found else default)
    return values[0] or 1.0, values[1]


def _is_hu(dataset: Any, metadata: dict[str, Any]) -> bool:
    kind = frame_value(dataset, 0, "PixelValueTransformationSequence", "RescaleType")
    intercept = frame_value(dataset, 0, "PixelValueTransformationSequence", "RescaleIntercept")
    return metadata.get("Modality") == "CT" and intercept is not None and str(kind or "HU") in ("HU", "US")


def _dtype(dataset: Any, colors: int) -> str:
    if "FloatPixelData" in dataset:
        return "float32"
    if "DoubleFloatPixelData" in dataset:
        return "float64"
    if colors > 1:
        return "uint16" if int(dataset.get("BitsAllocated") or 8) > 8 else "uint8"
    low, high = _range(dataset)
    slope, intercept = _rescale(dataset, 0)
    whole = slope.is_integer() and intercept.is_integer() and "ModalityLUTSequence" not in dataset
    if not whole or "PerFrameFunctionalGroupsSequence" in dataset and slope != 1.0:
        return "float32"
    ends = sorted((low * slope + intercept, high * slope + intercept))
    for name in ("uint8", "int16", "uint16", "int32"):
        if np.iinfo(name).min <= ends[0] and ends[1] <= np.iinfo(name).max:
            return name
    return "float32"


def _range(dataset: Any) -> tuple[int, int]:
    """Smallest and largest number that the stored bits can hold."""
    bits = min(int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 8), 32)
    if int(dataset.get("PixelRepresentation") or 0) == 1:
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


def _positive(value: Any) -> float | None:
    found = numbers(value, 1) if value not in (None, "") else None
    return found[0] if found and found[0] > 0 else None


# ---- samples ---------------------------------------------------------------------------------------------------------


def _frame(dataset: Any, frame: int, request: Request) -> np.ndarray:
    """The real values of one frame."""
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    dicom_codecs.install()
    stored = np.asarray(pixel_array(dataset, index=frame))
    photometric = str(dataset.get("PhotometricInterpretation") or "MONOCHROME2")
    if photometric == "PALETTE COLOR":
        return np.asarray(apply_color_lut(stored, dataset))
    if stored.ndim == 3:
        return stored
    values: np.ndarray = stored
    low, high = (float(v) for v in _range(dataset))
    if request.rescale or request.window:
        if "ModalityLUTSequence" in dataset:
            values = np.asarray(apply_modality_lut(stored, dataset)).astype(np.float32)
            low, high = float(values.min()), float(values.max())
        else:
            slope, intercept = _rescale(dataset, frame)
            name = _dtype(dataset, 1)
            values = stored.astype(name)
            if (slope, intercept) != (1.0, 0.0):
                number = np.float32 if values.dtype.kind == "f" and values.dtype.itemsize == 4 else values.dtype.type
                values = values * number(slope) + number(intercept)
            low, high = sorted((low * slope + intercept, high * slope + intercept))
    inverted = photometric == "MONOCHROME1"
    if request.window:
        if "VOILUTSequence" in dataset:
            shown = np.asarray(apply_voi_lut(values if values.dtype.kind in "iu" else stored, dataset)).astype(
                np.float32
            )
            bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
            values = shown / np.float32((1 << bits) - 1)
        else:
            first, last = window_of(dataset) or (float(values.min()), float(values.max()))
            span = max(last - first, 1e-6)
            values = np.clip((values.astype(np.float32) - np.float32(first)) / np.float32(span), 0, 1)
        return np.float32(1) - values if inverted else values
    if inverted and values.dtype.kind in "iuf":
        ends = low + high
        values = (ends - values.astype(np.float64)).astype(values.dtype)
    return values


def _placed(image: Image, dataset: Any, header: Header, order: list[int], part: tuple[slice, ...]) -> Image:
    """The image with its place in the patient: a matrix for stacks, the spacing alone for single frames."""
    rank = len(image.spatial)
    if not header.spacing or len(header.spacing) != rank:
        return image
    first = [part[image.layout.index(letter)].start for letter in image.spatial]
    at: Plane = plane(dataset, order[0] if rank == 3 else 0)
    if rank == 2 or at.axes is None or at.position is None or at.normal is None:
        affine = np.eye(rank + 1)
        affine[:rank, :rank] = np.eye(rank)[:, ::-1] * np.asarray(header.spacing)
        affine[:rank, rank] = affine[:rank, :rank] @ first
        return image.with_affine(affine)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([at.normal, at.axes]) * np.asarray(header.spacing)
    affine[:3, 3] = at.position + affine[:3, :3] @ first
    return image.with_affine(affine)
