"""White and grey matter of a head scan with a 3-D network, from a NIfTI file.

    python examples/brain_tissue.py model.onnx scan.nii.gz

The model is a MeshNet of the brainchop project (input `t1` [N, 1, D, H, W], scaled to 0..1); the scan a T1 volume of
256 x 256 x 256 voxels of 1 mm. Not for clinical use.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import dhc
from dhc.errors import MissingExtraError


def tissue_volumes(model: Path, scan: Path, crop: tuple[slice, slice, slice] | None = None) -> dict[str, float]:
    """Millilitres of white and grey matter.

    Args:
        model: the ONNX network.
        scan: the NIfTI volume.
        crop: part of the volume to look at; None: all of it.
    """
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("imaging", "reading NIfTI files") from None
    volume = np.asarray(nibabel.load(scan).dataobj, dtype=np.float32)
    scaled = (volume - volume.min()) / (volume.max() - volume.min())
    part = scaled if crop is None else scaled[crop]
    session = dhc.compile(dhc.load_onnx(model)).session()
    logits = session.run({"t1": np.ascontiguousarray(part[None, None])})["logits"]
    labels = logits[0].argmax(axis=0)
    return {name: float((labels == code).sum()) / 1000 for code, name in ((1, "white"), (2, "grey"))}


def main() -> None:
    """Prints the volumes."""
    if len(sys.argv) != 3:
        print(__doc__)
        raise SystemExit(2)
    for name, millilitres in tissue_volumes(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{name} matter: {millilitres:.0f} mL")


if __name__ == "__main__":
    main()
