"""What the confidentiality profile of DICOM (PS3.15, annex E) says of each attribute, and its options.

The table of the basic profile comes from the package dicom-anonymizer, which takes it from the standard. Where the
standard leaves a choice by the attribute's type (X/Z and the like), the choice that keeps the file valid is taken: zero
length before removal, a dummy before zero length.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from dhc.ecvl_ops.io.formats import missing

TABLE = "dicomfields_2026c"
_CATEGORIES = {
    "D_TAGS": "D", "Z_TAGS": "Z", "X_TAGS": "X", "U_TAGS": "U", "Z_D_TAGS": "D", "X_Z_TAGS": "Z", "X_D_TAGS": "D",
    "X_Z_D_TAGS": "D", "X_Z_U_STAR_TAGS": "U",
}  # fmt: skip

DATES = frozenset({"DA", "DT", "TM"})
BIRTH = frozenset({0x0010_0030, 0x0010_0032, 0x0010_0033})
"""Dates of birth are no dates of the examination: no option keeps them."""

PATIENT = frozenset({
    0x0010_0040, 0x0010_1010, 0x0010_1020, 0x0010_1021, 0x0010_1022, 0x0010_1030, 0x0010_2110, 0x0010_2160, 0x0010_2161,
    0x0010_2203, 0x0010_21A0, 0x0010_21C0, 0x0038_0500, 0x0040_0012, 0x0010_0212, 0x0010_0221,
})  # fmt: skip
"""Retain patient characteristics: sex, age, size, weight, allergies, smoking, pregnancy, ethnic group, needs."""
DEVICE = frozenset({
    0x0008_1010, 0x0018_1000, 0x0018_1002, 0x0018_1003, 0x0018_1004, 0x0018_1005, 0x0018_1006, 0x0018_1007, 0x0018_1008,
    0x0018_1009, 0x0018_100A, 0x0018_100B, 0x0018_700A, 0x0018_9367, 0x0018_9369, 0x0018_936A, 0x0018_9371, 0x0018_9373,
    0x0032_1020, 0x0032_1021, 0x0040_0001, 0x0040_0010, 0x0040_0011, 0x0040_0241, 0x0040_0242, 0x0040_0243, 0x0040_4025,
    0x0040_4027, 0x0040_4028, 0x0040_4030, 0x3008_0105, 0x0014_407E, 0x0020_9254,
})  # fmt: skip
"""Retain device identity: stations, serial numbers, identifiers of detectors and plates."""
INSTITUTION = frozenset({0x0008_0080, 0x0008_0081, 0x0008_0082, 0x0008_1040, 0x0008_1041})
"""Retain institution identity: name, address, code, department."""

_CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "pixels": ("113101", "Clean Pixel Data Option"),
    "keep dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "shift dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "patient": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
    "uids": ("113110", "Retain UIDs Option"),
    "private": ("113111", "Retain Safe Private Option"),
    "institution": ("113112", "Retain Institution Identity Option"),
}


@dataclass(frozen=True)
class Keep:
    """Options of the profile; the default keeps nothing that it lets go.

    Attributes:
        uids: identifiers of studies, series and instances.
        dates: "remove", "shift" by a number of days that is the same for a patient, or "keep".
        patient: sex, age, size, weight and the like.
        device: stations and serial numbers.
        institution: name, address and department.
        private: names of private creators whose elements are known to be safe.
    """

    uids: bool = False
    dates: str = "remove"
    patient: bool = False
    device: bool = False
    institution: bool = False
    private: tuple[str, ...] = ()

    def codes(self, cleaned_pixels: bool) -> list[tuple[str, str]]:
        """Codes and meanings (PS3.16, CID 7050) of the profile with these options."""
        chosen = ["basic"]
        chosen += ["pixels"] if cleaned_pixels else []
        chosen += [f"{self.dates} dates"] if self.dates != "remove" else []
        for name in ("patient", "device", "uids", "private", "institution"):
            chosen += [name] if getattr(self, name) else []
        return [_CODES[name] for name in chosen]


@cache
def actions() -> tuple[dict[int, str], list[tuple[int, int, int, int, str]]]:
    """Actions of the basic profile by tag, and of repeating groups by masks.

    Raises:
        MissingExtraError: the table is not installed.
    """
    try:
        table: Any = import_module(f"dicomanonymizer.dicom_anonymization_databases.{TABLE}")
    except ImportError:
        raise missing("de-identification of DICOM files (dicom-anonymizer)") from None
    single: dict[int, str] = {}
    repeating = []
    for category, action in _CATEGORIES.items():
        for tag in getattr(table, category):
            if len(tag) == 2:
                single[tag[0] << 16 | tag[1]] = action
            else:
                repeating.append((*tag, action))
    return single, repeating


def action_of(tag: int, vr: str, keep: Keep) -> str:
    """What becomes of an element: K keep, Z empty, D dummy, X remove, U replace the identifier, S shift the date."""
    single, repeating = actions()
    group, element = tag >> 16, tag & 0xFFFF
    action = single.get(tag)
    if action is None:
        for g, e, group_mask, element_mask, found in repeating:
            if group & group_mask == g & group_mask and element & element_mask == e & element_mask:
                action = found
                break
    if action is None:
        return "K"
    if action == "U" and keep.uids:
        return "K"
    if vr in DATES and tag not in BIRTH and keep.dates != "remove":
        return "S" if keep.dates == "shift" else "K"
    kept = (
        (keep.patient and tag in PATIENT)
        or (keep.device and tag in DEVICE)
        or (keep.institution and tag in INSTITUTION)
    )
    return "K" if kept else action
