"""NIfTI-1 and NIfTI-2, plain or gzipped, single files; headers by nibabel.

Arrays come as the file has them, the first of its axes innermost: ``DHW`` for a volume, ``NDHW`` with time, ``HWC`` and
``DHWC`` for colours. Positions are turned from NIfTI's (right, anterior, superior) to left, posterior, superior.
"""

from __future__ import annotations

import gzip
import math
import zlib
from typing import Any, BinaryIO

import numpy as np

from dhc_runtime.errors import ModelError, ResourceError, UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request, missing
from dhc.ecvl_ops.io.limits import Limits, check_declared, check_stored
from dhc.ecvl_ops.io.region import region_shape, slices
from dhc.ecvl_ops.io.source import Source

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COLORS = {"rgb": 3, "rgba": 4}
_CHUNK = 1 << 24


def probe(source: Source, limits: Limits) -> Header:
    """Shape, element type and geometry."""
    return _header(source, limits)[0]


def read(source: Source, limits: Limits, request: Request) -> Image:
    """The volume or a region of it; scaled to real values when the header has a scale."""
    header, fields = _header(source, limits)
    part = slices(header.layout, header.shape, request.region, source.name)
    check_declared(region_shape(part), header.dtype, limits, source.name)
    stored = np.dtype(fields.get_data_dtype())
    offset = _offset(fields, source)
    if _packed(source):
        values = _inflated(source, header.shape, stored, offset, part)
    elif source.path is not None:
        values = np.array(
            np.memmap(source.path, stored, "r", offset, header.shape[: _axes(header)])[part[: _axes(header)]]
        )
    else:
        values = np.ndarray(header.shape[: _axes(header)], stored, source.content, offset)[part[: _axes(header)]].copy()
    if stored.fields:
        values = values.view(np.uint8).reshape(*values.shape, len(stored.fields))
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    slope, intercept = _scale(fields)
    if request.rescale and (slope, intercept) != (1.0, 0.0):
        values = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    image = Image(values, header.layout, header.color, unit=header.unit, metadata=header.metadata)
    return _placed(image, fields, part)


def write(image: Image, stream: BinaryIO, *, compress: bool = False) -> None:
    """Writes a volume or a picture as NIfTI-1 (NIfTI-2 where an axis has more than 32767 samples).

    Args:
        image: ``HW``, ``DHW`` or ``NDHW``; colours of 8 bits may be the last axis.
        stream: where to.
        compress: gzip, without a time in its header: the same image gives the same bytes.
    """
    nibabel = _nibabel()
    if image.layout.startswith("C") and image.channels == 1:
        image = image.moved(image.layout[1:])
    values = np.ascontiguousarray(image.values)
    if image.layout.endswith("C") and image.color in _COLORS and values.dtype == np.uint8:
        names = "RGBA"[: values.shape[-1]]
        values = values.view([(name, "u1") for name in names])[..., 0]
    elif "C" in image.layout:
        raise UnsupportedError(f"NIfTI holds colours of 8 bits as the last axis, not {image.layout} of {values.dtype}")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.dtype.name in ("float16", "bfloat16"):
        values = values.astype(np.float32)
    rank = len(image.spatial)
    affine = np.eye(4)
    matrix = image.affine
    # Our array axes are (D, H, W), the file's (W, H, D).
    flipped = matrix[:, [*range(rank - 1, -1, -1), rank]]
    affine[:rank, :rank], affine[:rank, 3] = flipped[:rank, :rank], flipped[:rank, rank]
    volume = values.T
    if rank == 2 and "N" in image.layout:
        volume = volume[:, :, None]
    kind = nibabel.Nifti2Image if max(volume.shape) > 32767 else nibabel.Nifti1Image
    made = kind(volume, _LPS @ affine, dtype=volume.dtype)
    made.header.set_xyzt_units("mm", "sec")
    made.set_qform(_LPS @ affine, code=1, strip_shears=True)
    made.set_sform(_LPS @ affine, code=1)
    content = made.to_bytes()
    if compress:
        packer = gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6, mtime=0, filename="")
        with packer:
            packer.write(content)
    else:
        stream.write(content)


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise missing("reading and writing NIfTI files (nibabel)") from None
    return nibabel


def _packed(source: Source) -> bool:
    return source.head(2) == b"\x1f\x8b"


def _axes(header: Header) -> int:
    """Axes of the stored elements: colours are within them."""
    return len(header.shape) - header.layout.count("C")


def _header(source: Source, limits: Limits) -> tuple[Header, Any]:
    nibabel = _nibabel()
    with source.open() as stream:
        unpacked: Any = gzip.GzipFile(fileobj=stream) if _packed(source) else stream
        try:
            start = unpacked.read(540)
        except (OSError, EOFError, zlib.error) as error:
            raise ModelError(f"the file is damaged: {error}", source.name) from None
    size = min(int.from_bytes(start[:4], order) for order in ("little", "big")) if len(start) >= 348 else 0
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    if size not in kinds or len(start) < size:
        raise ModelError("the NIfTI header is damaged", source.name, "its size is neither 348 nor 540 bytes")
    try:
        fields = kinds[size](start[:size], check=False)
        count = int(fields["dim"][0])
        sizes = [int(n) for n in fields["dim"][1 : 1 + count]]
        dtype = np.dtype(fields.get_data_dtype())
    except (nibabel.spatialimages.HeaderDataError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"the NIfTI header is damaged: {error}", source.name) from None
    if bytes(fields["magic"].item()[:2]) == b"ni":
        raise UnsupportedError("pairs of .hdr and .img files are not read", where=source.name, hint="convert to .nii")
    if not 1 <= count <= 7 or any(n <= 0 for n in sizes):
        raise ModelError(f"the NIfTI header declares the sizes {sizes}", source.name)
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) == 3 and sizes[2] == 1:
        sizes.pop()
    if len(sizes) > 4 and sizes[3] == 1 and len(sizes) == 5:  # vectors: x, y, z, 1, component
        sizes.pop(3)
    if not 2 <= len(sizes) <= 4:
        raise UnsupportedError(f"NIfTI images of the sizes {sizes} are not read", where=source.name)
    color = {("R", "G", "B"): "rgb", ("R", "G", "B", "A"): "rgba"}.get(tuple(dtype.names or ()), "gray")
    if color == "gray" and dtype.kind not in "fiu":
        raise UnsupportedError(f"NIfTI images of {dtype} are not read", where=source.name)
    if dtype.itemsize > 8:
        raise UnsupportedError(f"NIfTI images of {dtype} are not read", where=source.name)
    layout = {2: "HW", 3: "DHW", 4: "NDHW"}[len(sizes)] + ("" if color == "gray" else "C")
    shape = (*reversed(sizes), *(() if color == "gray" else (_COLORS[color],)))
    total = math.prod(sizes) * dtype.itemsize
    check_stored(total, source.size, source.name, compressed=_packed(source))
    if not _packed(source):
        check_stored(total, source.size - _offset(fields, source), source.name)
    check_declared(shape[:-1] if color != "gray" else shape, np.uint8, limits, source.name)
    name = "uint8" if color != "gray" else dtype.newbyteorder("=").name
    if _scale(fields) != (1.0, 0.0):
        name = "float32"
    description = bytes(fields["descrip"].item()).split(b"\0")[0].decode("latin-1")
    header = Header(
        "NIfTI", shape, layout, name, color, _spacing(fields, layout), metadata={"description": description}
    )
    return header, fields


def _offset(fields: Any, source: Source) -> int:
    offset = float(fields["vox_offset"])
    size = int(fields["sizeof_hdr"]) if int(fields["sizeof_hdr"]) in (348, 540) else 348
    if not math.isfinite(offset) or not 0 <= offset < 1 << 40:
        raise ModelError(f"the NIfTI header says that samples begin at {offset}", source.name)
    return max(int(offset), size + 4)


def _scale(fields: Any) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0.0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _spacing(fields: Any, layout: str) -> tuple[float, ...]:
    rank = sum(letter in "DHW" for letter in layout)
    scale = {1: 1000.0, 2: 1.0, 3: 0.001}.get(int(fields["xyzt_units"]) & 7, 1.0)
    found = [abs(float(v)) * scale for v in fields["pixdim"][1 : 1 + rank]][::-1]
    return tuple(found) if all(math.isfinite(v) and v > 0 for v in found) else ()


def _placed(image: Image, fields: Any, part: tuple[slice, ...]) -> Image:
    """The image with the geometry of the header, moved to the region's first sample."""
    rank = len(image.spatial)
    scale = {1: 1000.0, 2: 1.0, 3: 0.001}.get(int(fields["xyzt_units"]) & 7, 1.0)
    best = np.array(fields.get_best_affine(), np.float64)
    best[:3] *= scale
    if not np.all(np.isfinite(best)) or not np.all(np.linalg.norm(best[:3, :rank], axis=0) > 0):
        return image
    matrix = _LPS @ best
    order = [*range(rank - 1, -1, -1)]
    affine = np.eye(rank + 1)
    affine[:rank, :rank], affine[:rank, rank] = matrix[:rank, order], matrix[:rank, 3]
    first = [part[image.layout.index(letter)].start for letter in image.spatial]
    affine[:rank, rank] += affine[:rank, :rank] @ first
    if rank == 2 and not np.all(np.linalg.norm(affine[:2, :2], axis=0) > 0):
        return image
    return image.with_affine(affine)


def _inflated(
    source: Source, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, part: tuple[slice, ...]
) -> np.ndarray:
    """Samples of a gzipped file: unpacked only as far as the region needs, never more than the header declares."""
    stored = shape[: len(shape) - (1 if dtype.fields else 0)]
    first, end = part[0].start, part[0].stop
    row = math.prod(stored[1:]) * dtype.itemsize
    values = np.empty((end - first, *stored[1:]), dtype)
    target = values.reshape(-1).view(np.uint8).data
    with source.open() as stream:
        unpacked = gzip.GzipFile(fileobj=stream)
        try:
            unpacked.seek(offset + first * row)
            filled = 0
            while filled < len(target):
                got = unpacked.readinto(target[filled : filled + _CHUNK])
                if not got:
                    raise ModelError(
                        f"the NIfTI file ends after {filled} of {len(target)} bytes", source.name, "it is truncated"
                    )
                filled += got
        except (OSError, EOFError, zlib.error) as error:
            raise ModelError(f"the file is damaged: {error}", source.name) from None
        except MemoryError:
            raise ResourceError(f"no memory for {len(target)} bytes", where=source.name) from None
    return values[(slice(None), *part[1 : len(stored)])].copy() if len(stored) > 1 else values
