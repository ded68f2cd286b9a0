"""Real images and volumes, prepared as the README of the shared data says for each model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CROP = (slice(43, 213), slice(47, 220), slice(8, 224))
"""The part of the T1 volume that holds the head, for which the expected labels were made."""


def digits(data: Path) -> dict[int, np.ndarray]:
    """Handwritten digits by their value: [1, 1, 28, 28], 0..255, white on black."""
    return {
        number: np.asarray(Image.open(data / "digits" / f"{number}.jpg").convert("L"), np.float32)[None, None]
        for number in (0, 3, 5, 7)
    }


def astronaut() -> np.ndarray:
    """The photograph of a person that ships with scikit-image, RGB."""
    return np.asarray(pytest.importorskip("skimage.data", reason="scikit-image is not installed").astronaut())


def wolves(data: Path) -> np.ndarray:
    """A photograph of wolves, RGB."""
    return np.asarray(Image.open(data / "natural" / "wolves.jpg").convert("RGB"))


def face_input(image: np.ndarray) -> np.ndarray:
    """[1, 3, 240, 320], RGB, (v - 127) / 128."""
    pixels = np.asarray(Image.fromarray(image).resize((320, 240), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])


def detection_input(image: np.ndarray) -> np.ndarray:
    """[1, 3, 352, 352], BGR / 255."""
    pixels = np.asarray(Image.fromarray(image).resize((352, 352), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1)[None] / np.float32(255))


def tissue_pixels(data: Path) -> np.ndarray:
    """Every pixel of the histology patch: [65536, 3], RGB, 0..255."""
    patch = np.asarray(Image.open(data / "histology" / "patch.tif"))
    return np.ascontiguousarray(patch[..., :3].reshape(-1, 3), np.float32)


def retina(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A fundus photograph cropped to its field of view, [1, 3, 512, 512] / 255, and its manual vessels [512, 512]."""
    photograph = Image.open(data / "retina_hrf" / f"{name}_h.jpg").convert("RGB")
    rows, columns = np.nonzero(np.asarray(photograph)[..., 0] > 30)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    pixels = np.asarray(photograph.crop(box).resize((512, 512), Image.Resampling.BILINEAR), np.float32)
    annotation = Image.open(data / "retina_hrf" / f"{name}_h_AVmanual.png").convert("RGB")
    vessels = Image.fromarray(np.asarray(annotation).max(axis=2) > 0)
    scale = annotation.width / photograph.width
    left, top, right, bottom = (round(edge * scale) for edge in box)
    manual = np.asarray(vessels.crop((left, top, right, bottom)).resize((512, 512), Image.Resampling.NEAREST))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / np.float32(255)), manual


def dice(mask: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks: 1 when they are equal, 0 when they are disjoint."""
    return 2 * float((mask & other).sum()) / float(mask.sum() + other.sum())


def t1_volume(data: Path) -> np.ndarray:
    """The T1 volume, 256^3 uint8, in the order in which nibabel reads it."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    return np.asarray(nibabel.load(data / "brain_mri" / "t1_crop.nii.gz").dataobj)


def scaled(volume: np.ndarray, model: str) -> np.ndarray:
    """The volume scaled as a MeshNet was trained: by quantiles or by extremes of the whole volume."""
    values = volume.astype(np.float32)
    if model == "brain_meshnet_20ch_3cls_elu":
        low, high = np.quantile(volume, (0.05, 0.95))
        return np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    low, high = values.min(), values.max()
    return (values - low) / (high - low)
