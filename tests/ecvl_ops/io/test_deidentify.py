"""De-identification: no name, date or identifier is left, the same secret joins files, and the log has no values."""

from __future__ import annotations

import io as streams
import warnings
from pathlib import Path

import numpy as np
import pytest

from dhc.ecvl_ops import io
from dhc.errors import ModelError, UnsupportedError, UsageError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("dicomanonymizer", reason="dicom-anonymizer is not installed")

from dhc.ecvl_ops.io.confidentiality import action_of, actions  # noqa: E402
from dhc.ecvl_ops.io.deidentify import Keep, deidentified, deidentify  # noqa: E402
from tests.ecvl_ops.io.test_dicom import numbered, shipped, slice_file  # noqa: E402

SECRET = bytes(range(32))
_IDENTITY = {
    "PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19610203", "PatientSex": "F",
    "PatientAge": "065Y", "StudyDate": "20260203", "StudyTime": "101112", "AcquisitionDateTime": "20260203101112.5",
    "InstitutionName": "Hospital of Doe", "StationName": "CT1", "DeviceSerialNumber": "S-77", "AccessionNumber": "A99",
    "ReferringPhysicianName": "Who^Doctor", "StudyDescription": "Chest of Jane Doe", "StudyInstanceUID": "1.2.3.4",
    "FrameOfReferenceUID": "1.2.3.5", "PatientComments": "lives in Doe street", "OperatorsName": "Op^Erator",
}  # fmt: skip


def identified(**more: object) -> bytes:
    return slice_file(0.0, numbered(3), **{**_IDENTITY, **more})


def read(content: bytes) -> object:
    return pydicom.dcmread(streams.BytesIO(content))


def test_nothing_that_identifies_is_left() -> None:
    content, log = deidentified(identified(), secret=SECRET, pseudonym="P001")
    for text in (
        b"Doe",
        b"Jane",
        b"4711",
        b"1961",
        b"202602",
        b"CT1",
        b"S-77",
        b"A99",
        b"Who",
        b"Erator",
        b"1.2.3.4",
        b"101112",
    ):
        assert text not in content, text
    dataset = read(content)
    assert dataset.PatientName == "P001" and dataset.PatientID == "P001" and dataset.PatientIdentityRemoved == "YES"
    assert [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence] == ["113100"]
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert np.array_equal(io.read(content, trusted=True).values, io.read(identified(), trusted=True).values)
    said = {action.path: action.done for action in log}
    assert said["PatientBirthDate"] == "emptied" and said["StudyInstanceUID"] == "identifier replaced"
    assert not any(value in str(log) for value in _IDENTITY.values() if len(value) > 3)


def test_the_same_secret_keeps_files_together_and_another_does_not() -> None:
    first, second = (read(deidentified(identified(), secret=SECRET)[0]) for _ in range(2))
    other = read(deidentified(identified(), secret=SECRET[::-1])[0])
    assert first.StudyInstanceUID == second.StudyInstanceUID != other.StudyInstanceUID
    assert first.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2" and first.StudyInstanceUID.is_valid


def test_options_keep_what_they_name() -> None:
    kept = read(
        deidentified(identified(), secret=SECRET, keep=Keep(patient=True, device=True, institution=True, uids=True))[0]
    )
    assert (kept.PatientSex, kept.PatientAge, kept.StationName, kept.InstitutionName) == (
        "F",
        "065Y",
        "CT1",
        "Hospital of Doe",
    )
    assert kept.StudyInstanceUID == "1.2.3.4" and not kept.PatientBirthDate and not kept.StudyDate
    codes = [item.CodeValue for item in kept.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113108", "113109", "113110", "113112"]
    dated = read(deidentified(identified(), secret=SECRET, keep=Keep(dates="keep"))[0])
    assert dated.StudyDate == "20260203" and not dated.PatientBirthDate


def test_dates_move_together() -> None:
    shifted = read(deidentified(identified(), secret=SECRET, keep=Keep(dates="shift"))[0])
    later = read(deidentified(identified(StudyDate="20260210"), secret=SECRET, keep=Keep(dates="shift"))[0])
    days = [np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (shifted.StudyDate, later.StudyDate)]
    assert days[1] - days[0] == 7 and shifted.StudyDate != "20260203" and shifted.StudyTime == "101112"
    assert shifted.AcquisitionDateTime == f"{shifted.StudyDate}101112.5"
    assert shifted.LongitudinalTemporalInformationModified == "MODIFIED"


def test_nested_and_private_elements_are_cleaned() -> None:
    item = pydicom.Dataset()
    item.ReferencedSOPInstanceUID, item.ReferencedSOPClassUID = "1.2.3.9", "1.2.840.10008.5.1.4.1.1.2"
    item.PatientName = "Doe^Jane"
    dataset = read(identified())
    dataset.SourceImageSequence = [item]
    dataset.private_block(0x0029, "SAFE", create=True).add_new(1, "LO", "kept text")
    dataset.private_block(0x0031, "OTHER", create=True).add_new(1, "LO", "Jane")
    stream = streams.BytesIO()
    dataset.save_as(stream)
    content, log = deidentified(stream.getvalue(), secret=SECRET, keep=Keep(private=("SAFE",)))
    assert b"Jane" not in content and b"1.2.3.9" not in content and b"kept text" in content
    assert any(action.path == "SourceImageSequence[0].ReferencedSOPInstanceUID" for action in log)
    assert b"kept text" not in deidentified(stream.getvalue(), secret=SECRET)[0]


def test_burnt_in_text_is_refused_or_blackened() -> None:
    content = identified(BurnedInAnnotation="YES")
    with pytest.raises(ModelError, match="burnt into"):
        deidentified(content, secret=SECRET)
    cleaned, log = deidentified(content, secret=SECRET, black_out=[(0, 2, 1, 4)])
    values, before = (io.read(c, rescale=False, trusted=True).values for c in (cleaned, content))
    assert (values[0:2, 1:4] == before.min()).all()
    untouched = np.ones(values.shape, bool)
    untouched[0:2, 1:4] = False
    assert np.array_equal(values[untouched], before[untouched])
    assert read(cleaned).BurnedInAnnotation == "NO" and "1 rectangles blackened" in log[-1].done
    with pytest.raises(UsageError, match="not within 4 x 6"):
        deidentified(content, secret=SECRET, black_out=[(0, 9, 0, 1)])


def test_a_program_in_the_preamble_does_not_survive() -> None:
    content = b"MZ" + b"\x90" * 126 + identified()[128:]
    assert deidentified(content, secret=SECRET)[0][:128] == bytes(128)


def test_the_table_covers_the_profile() -> None:
    single, repeating = actions()
    assert len(single) > 600 and len(repeating) >= 3
    assert action_of(0x0010_0010, "PN", Keep()) == "Z"
    assert action_of(0x0028_0010, "US", Keep()) == "K"
    assert action_of(0x5010_3000, "OW", Keep()) == "X"  # a curve
    assert action_of(0x0010_0030, "DA", Keep(dates="keep")) == "Z"


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.name)
def test_every_file_of_pydicom_is_cleaned_or_refused(path: Path, tmp_path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deidentify(path, tmp_path / "out.dcm", secret=SECRET)
            dataset = pydicom.dcmread(tmp_path / "out.dcm")
            old = pydicom.dcmread(path, force=True)
    except (ModelError, UnsupportedError):
        assert not (tmp_path / "out.dcm").exists()
        return
    for keyword in (
        "PatientName",
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "InstitutionName",
        "StudyDate",
    ):
        value = str(old.get(keyword) or "")
        assert not value or str(dataset.get(keyword) or "") != value, keyword
    assert dataset.PatientIdentityRemoved == "YES"


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 16"):
        deidentified(identified(), secret=b"short")
    with pytest.raises(UsageError, match="dates='all'"):
        deidentified(identified(), secret=SECRET, keep=Keep(dates="all"))
    with pytest.raises(UsageError):
        deidentify(identified(), tmp_path / "no" / "folder.dcm", secret=SECRET)
