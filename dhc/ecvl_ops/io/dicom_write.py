"""DICOM secondary captures: any picture or volume as DICOM, with its place in the patient."""

from __future__ import annotations

import datetime
from typing import Any, BinaryIO

import numpy as np

from dhc_runtime.errors import UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.dicom_file import pydicom

_GRAY_BYTE, _GRAY_WORD, _COLOR = (f"1.2.840.10008.5.1.4.1.1.7.{n}" for n in (2, 3, 4))
_SINGLE = "1.2.840.10008.5.1.4.1.1.7"


def write(image: Image, stream: BinaryIO, *, patient: str = "", patient_id: str = "", description: str = "") -> None:
    """Writes a secondary capture: one frame, or one frame a slice.

    Args:
        image: ``HW``, ``HWC``, ``DHW`` or ``DHWC``; grey of 8 or 16 bits (signed numbers are stored with an intercept),
            RGB of 8 bits, or float32 grey, which is stored in 16 bits with a slope.
        stream: where to.
        patient: name; empty as for phantoms.
        patient_id: the patient's ID.
        description: of the series.

    Raises:
        UnsupportedError: DICOM secondary captures cannot hold such samples.
    """
    library = pydicom()
    order = image.spatial + ("C" if image.channels > 1 else "")
    if order not in ("HW", "HWC", "DHW", "DHWC"):
        raise UnsupportedError(f"a secondary capture holds slices, not {image.layout}")
    picture = image.moved(order)
    values, slope, intercept = _stored(picture)
    frames = values.shape[0] if "D" in order else 1
    rows, columns = picture.spatial_shape[-2:]
    color = picture.channels > 1
    dataset = library.dataset.Dataset()
    uid = library.uid.generate_uid
    dataset.SOPClassUID = (
        _SINGLE
        if frames == 1 and "D" not in order
        else _COLOR
        if color
        else _GRAY_BYTE
        if values.itemsize == 1
        else _GRAY_WORD
    )
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid(), uid(), uid()
    now = datetime.datetime.now()
    dataset.ContentDate = dataset.StudyDate = now.strftime("%Y%m%d")
    dataset.ContentTime = dataset.StudyTime = now.strftime("%H%M%S")
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.PatientName, dataset.PatientID = patient, patient_id
    dataset.PatientBirthDate = dataset.PatientSex = dataset.StudyID = dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.SeriesDescription = description[:64]
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel = 3 if color else 1
    dataset.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = values.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = values.itemsize * 8 - 1, 0
    if color:
        dataset.PlanarConfiguration = 0
    else:
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
        dataset.RescaleType = "HU" if image.unit == "hu" else "US"
        dataset.PresentationLUTShape = "IDENTITY"
    _place(dataset, picture, frames, "D" in order)
    content = np.ascontiguousarray(values).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    meta = library.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = library.uid.ExplicitVRLittleEndian
    dataset.file_meta = meta
    library.dcmwrite(stream, dataset, enforce_file_format=True)


def _stored(image: Image) -> tuple[np.ndarray, float, float]:
    """Unsigned numbers of 8 or 16 bits, and the line that takes them back."""
    values = image.values
    if image.channels > 1:
        if image.color not in ("rgb", "bgr") or values.dtype != np.uint8:
            raise UnsupportedError(f"a secondary capture holds RGB of 8 bits, not {image.color} of {values.dtype}")
        return (values[..., ::-1] if image.color == "bgr" else values), 1.0, 0.0
    if values.dtype == np.bool_:
        return values.astype(np.uint8), 1.0, 0.0
    if values.dtype in (np.uint8, np.uint16):
        return values, 1.0, 0.0
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        raise UnsupportedError("DICOM cannot hold samples that are not finite")
    if values.dtype.kind in "iu" and high - low <= 65535:
        start = min(low, 0.0) if low >= -32768 else low
        start = -32768.0 if -32768 <= low < 0 and high - start > 65535 else start
        return (values.astype(np.int64) - int(start)).astype(np.uint16), 1.0, start
    if values.dtype.kind == "f":
        slope = (high - low) / 65535 or 1.0
        return np.rint((values.astype(np.float64) - low) / slope).astype(np.uint16), slope, low
    raise UnsupportedError(f"samples of {values.dtype} from {low:g} to {high:g} do not fit in 16 bits")


def _place(dataset: Any, image: Image, frames: int, stack: bool) -> None:
    """Spacing, position and directions, as far as they are known."""
    library = pydicom()
    sequence, item = library.sequence.Sequence, library.dataset.Dataset
    if not image.spacing:
        if stack:
            dataset.NumberOfFrames = frames
            dataset.FrameIncrementPointer = 0x00200013
        return
    spacing = [f"{v:.10g}" for v in image.spacing[-2:]]
    if not stack:
        dataset.PixelSpacing = spacing
        return
    affine = image.affine
    cosines = [*(affine[:3, 2] / image.spacing[2]), *(affine[:3, 1] / image.spacing[1])]
    dataset.NumberOfFrames = frames
    dataset.FrameIncrementPointer = 0x00200032
    shared, measures, direction = item(), item(), item()
    measures.PixelSpacing, measures.SliceThickness = spacing, f"{image.spacing[0]:.10g}"
    direction.ImageOrientationPatient = [f"{v:.10g}" for v in cosines]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = sequence([measures]), sequence([direction])
    dataset.SharedFunctionalGroupsSequence = sequence([shared])
    each = []
    for n in range(frames):
        position, group = item(), item()
        position.ImagePositionPatient = [f"{v:.10g}" for v in affine[:3, 3] + n * affine[:3, 0]]
        group.PlanePositionSequence = sequence([position])
        each.append(group)
    dataset.PerFrameFunctionalGroupsSequence = sequence(each)
