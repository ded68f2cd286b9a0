"""De-identification of DICOM files by the basic profile of PS3.15, annex E, with a log of what was done.

    from dhc.ecvl_ops.io.deidentify import Keep, deidentify

    log = deidentify("in.dcm", "out.dcm", secret=secret, keep=Keep(dates="shift", patient=True))

The same secret maps the same identifiers and dates alike in all files, so that series stay together; without it nobody
can tell which they were. Who loses the secret loses only that.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from dhc_runtime.errors import ModelError, UnsupportedError, UsageError
from dhc_runtime.safe_write import write_bytes

from dhc.ecvl_ops.io.codestream import check_frame
from dhc.ecvl_ops.io.confidentiality import Keep, action_of
from dhc.ecvl_ops.io.dicom_file import opened, pydicom
from dhc.ecvl_ops.io.limits import DEFAULT, Limits
from dhc.ecvl_ops.io.quiet import quiet
from dhc.ecvl_ops.io.source import Readable, Source

__all__ = ["Action", "Keep", "deidentify", "deidentified"]

_WORDS = {"K": "kept", "Z": "emptied", "D": "replaced", "X": "removed", "U": "identifier replaced", "S": "date shifted"}
_STANDARD_ROOT = "1.2.840.10008."
_LEAST_SECRET = 16
_MOST_DAYS = 3650
_DUMMIES: dict[str, Any] = {
    "DA": "19000101", "TM": "000000", "DT": "19000101000000", "AS": "000Y", "DS": "0", "IS": "0", "FD": 0.0, "FL": 0.0,
    "SL": 0, "SS": 0, "UL": 0, "US": 0, "SV": 0, "UV": 0, "UI": "2.25.0", "UR": "", "AT": 0, "CS": "ANONYMOUS",
}  # fmt: skip
_BYTES = ("OB", "OW", "OD", "OF", "OL", "OV", "UN")
_NOT_CLEANED = ("1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.104.")
"""Structured reports and encapsulated documents: names may stand anywhere in their text."""
Rectangle = tuple[int, int, int, int]
_NOTHING = Keep()


@dataclass(frozen=True)
class Action:
    """What became of one element; never its value.

    Attributes:
        path: keywords (or tags) from the outermost sequence to the element.
        done: in words.
    """

    path: str
    done: str


def deidentify(
    source: Readable,
    target: Union[str, os.PathLike[str]],
    *,
    secret: bytes,
    keep: Keep = _NOTHING,
    pseudonym: str = "",
    black_out: Sequence[Rectangle] = (),
    limits: Limits = DEFAULT,
) -> list[Action]:
    """Writes a file without what identifies the patient; it appears whole or not at all.

    Args:
        source: the DICOM file.
        target: the new file; its name should not hold a patient's name either.
        secret: 16 bytes or more that belong to the project.
        keep: options of the profile.
        pseudonym: becomes the patient's name and ID.
        black_out: parts of the picture (first and one past the last row, then column) that hold burnt-in text.
        limits: of the file.

    Returns:
        what was done to each element.

    Raises:
        UnsupportedError: a report or a document, whose text cannot be cleaned by rules.
        ModelError: the picture says that text is burnt in, and `black_out` is empty.
    """
    content, log = deidentified(
        source, secret=secret, keep=keep, pseudonym=pseudonym, black_out=black_out, limits=limits
    )
    write_bytes(Path(target), content)
    return log


def deidentified(
    source: Readable,
    *,
    secret: bytes,
    keep: Keep = _NOTHING,
    pseudonym: str = "",
    black_out: Sequence[Rectangle] = (),
    limits: Limits = DEFAULT,
) -> tuple[bytes, list[Action]]:
    """The new file's bytes and the log, see `deidentify`."""
    if len(secret) < _LEAST_SECRET:
        raise UsageError(f"the secret has {len(secret)} bytes, at least {_LEAST_SECRET} are needed")
    if keep.dates not in ("remove", "shift", "keep"):
        raise UsageError(f"dates={keep.dates!r}: it is 'remove', 'shift' or 'keep'")
    given = Source.of(source)
    with quiet():
        return _deidentified(given, secret, keep, pseudonym, black_out, limits)


def _deidentified(
    given: Source, secret: bytes, keep: Keep, pseudonym: str, black_out: Sequence[Rectangle], limits: Limits
) -> tuple[bytes, list[Action]]:
    dataset = opened(given, limits)
    _check_kind(dataset, given.name, bool(black_out))
    worker = _Cleaner(secret, keep, str(dataset.get("PatientID") or dataset.get("PatientName") or ""))
    worker.clean(dataset, "")
    if black_out:
        _blacken(dataset, black_out, given.name)
        worker.log.append(Action("PixelData", f"{len(black_out)} rectangles blackened"))
    dataset.PatientName = dataset.PatientID = pseudonym
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "dhc: PS3.15 basic profile"
    _record(dataset, keep.codes(bool(black_out)))
    if keep.dates != "remove":
        dataset.LongitudinalTemporalInformationModified = "MODIFIED" if keep.dates == "shift" else "UNMODIFIED"
    else:
        dataset.LongitudinalTemporalInformationModified = "REMOVED"
    return _bytes(dataset, given.name), worker.log


class _Cleaner:
    """Applies the profile to a data set and everything nested in it."""

    def __init__(self, secret: bytes, keep: Keep, patient: str) -> None:
        self._secret, self._keep = secret, keep
        days = int.from_bytes(self._digest("patient", patient)[:4], "big") % _MOST_DAYS + 1
        self._shift = datetime.timedelta(days=-days)
        self.log: list[Action] = []

    def clean(self, dataset: Any, path: str) -> None:
        """Changes the data set in place."""
        for element in list(dataset):
            name = path + (element.keyword or f"({element.tag.group:04X},{element.tag.element:04X})")
            if element.tag.is_private:
                if not self._is_safe(dataset, element):
                    del dataset[element.tag]
                    self.log.append(Action(name, "private, removed"))
                continue
            action = action_of(int(element.tag), element.VR, self._keep)
            if action == "X":
                del dataset[element.tag]
            elif action == "Z":
                element.value = [] if element.VR == "SQ" else b"" if element.VR in _BYTES else None
            elif action == "U" and element.VR != "SQ":
                element.value = self._identifiers(element.value)
            elif action == "D" and element.VR != "SQ":
                element.value = b"" if element.VR in _BYTES else _DUMMIES.get(element.VR, "ANONYMOUS")
            elif action == "S":
                element.value = self._moved(element.value, element.VR)
            if action != "K":
                self.log.append(Action(name, _WORDS[action] if element.VR != "SQ" or action in "XZ" else "cleaned"))
            if element.VR == "SQ" and action not in "XZ":
                for number, item in enumerate(element.value):
                    self.clean(item, f"{name}[{number}].")

    def _is_safe(self, dataset: Any, element: Any) -> bool:
        if not self._keep.private:
            return False
        if element.tag.is_private_creator:
            return str(element.value) in self._keep.private
        creator = dataset.get((element.tag.group, element.tag.element >> 8))
        return creator is not None and str(creator.value) in self._keep.private

    def _digest(self, kind: str, text: str) -> bytes:
        return hmac.new(self._secret, f"{kind}\0{text}".encode(), hashlib.sha256).digest()

    def _identifiers(self, value: Any) -> Any:
        if value is None or value == "":
            return value
        if isinstance(value, str):
            return self.identifier(value)
        return [self.identifier(str(one)) for one in value]

    def identifier(self, uid: str) -> str:
        """The new identifier of an old one; those of the standard itself stay."""
        if uid.startswith(_STANDARD_ROOT):
            return uid
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def _moved(self, value: Any, vr: str) -> Any:
        if vr == "TM" or value in (None, ""):
            return value
        if not isinstance(value, str) and hasattr(value, "__iter__"):
            return [self._moved(one, vr) for one in value]
        text = str(value)
        try:
            day = datetime.datetime.strptime(text[:8], "%Y%m%d") + self._shift
        except (ValueError, OverflowError):
            return None  # what is no date may be anything
        return day.strftime("%Y%m%d") + (text[8:] if vr == "DT" else "")


def _check_kind(dataset: Any, where: str, cleaned: bool) -> None:
    if not len(dataset):
        raise ModelError("the file is not a DICOM file", where)
    kind = str(dataset.get("SOPClassUID", ""))
    if kind.startswith(_NOT_CLEANED):
        raise UnsupportedError(
            f"the text of a {dataset.SOPClassUID.name} cannot be cleaned by rules", where=where,
            hint="leave reports and documents out",
        )  # fmt: skip
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES" and not cleaned:
        raise ModelError(
            "the file says that text is burnt into its picture",
            where,
            "name the places by `black_out`, or leave it out",
        )


def _blacken(dataset: Any, rectangles: Sequence[Rectangle], where: str) -> None:
    import numpy as np

    from dhc.ecvl_ops.io import dicom_codecs

    rows, columns = int(dataset.Rows), int(dataset.Columns)
    for top, bottom, left, right in rectangles:
        if not (0 <= top < bottom <= rows and 0 <= left < right <= columns):
            raise UsageError(f"the rectangle {(top, bottom, left, right)} is not within {rows} x {columns}", where)
    dicom_codecs.install()
    for number in range(int(dataset.get("NumberOfFrames") or 1)):
        check_frame(dataset, number, where)
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.decompress()
    pixels = np.array(dataset.pixel_array)
    dark = pixels.max() if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else pixels.min()
    frames = pixels if int(dataset.get("NumberOfFrames") or 1) > 1 else pixels[None]
    for top, bottom, left, right in rectangles:
        frames[:, top:bottom, left:right] = dark
    if int(dataset.get("PlanarConfiguration") or 0) == 1:
        dataset.PlanarConfiguration = 0
    content = np.ascontiguousarray(pixels).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset.BurnedInAnnotation = "NO"


def _record(dataset: Any, codes: Sequence[tuple[str, str]]) -> None:
    library = pydicom()
    items = []
    for code, meaning in codes:
        item = library.dataset.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "DCM", meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = library.sequence.Sequence(items)


def _bytes(dataset: Any, where: str) -> bytes:
    """The file: a new preamble, since the old one may be a program, and meta information of this file alone."""
    library = pydicom()
    old = dataset.file_meta
    meta = library.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in old:
        raise ModelError("the file does not say how it is encoded", where)
    meta.TransferSyntaxUID = old.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "")
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    dataset.file_meta = meta
    dataset.preamble = bytes(128)
    stream = io.BytesIO()
    try:
        library.dcmwrite(stream, dataset, enforce_file_format=True)
    except Exception as error:  # elements that pydicom can read and not write
        raise ModelError(f"the file cannot be written again: {' '.join(str(error).split())[:200]}", where) from None
    return stream.getvalue()
