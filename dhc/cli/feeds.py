"""``--input x=FILE``: arrays for the inputs of a model from files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dhc_runtime.errors import ModelError, ResourceError, ShapeError, TypeMismatchError, UsageError

from dhc.cli.engine import InputSpec
from dhc.cli.pictures import DICOM_SUFFIXES, IMAGE_SUFFIXES, read_picture, resized
from dhc.cli.preprocessing import Preprocessing, find_preprocessing
from dhc.cli.samples import bind_sizes, random_input
from dhc.cli.shapes import ShapeSpec, require_input

Array = np.ndarray[Any, Any]
RANDOM = "random"
_MAX_ARRAY = 1 << 33
_CHANNELS = (1, 3, 4)


def collect_inputs(
    specs: Sequence[InputSpec],
    assignments: Sequence[str],
    preprocessing: str = "none",
    shapes: Mapping[str, ShapeSpec] | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Reads every input.

    Args:
        specs: what the model takes.
        assignments: the values of ``--input``.
        preprocessing: what is done to images.
        shapes: sizes for random inputs.
        seed: of the random inputs.

    Raises:
        UsageError: an input is missing, unknown or given twice, or a file cannot be read.
        DhcError: what reading a file reports.
    """
    prepare = find_preprocessing(preprocessing)
    by_name = {spec.name: spec for spec in specs}
    files: dict[str, list[str]] = {}
    arrays: dict[str, Array] = {}
    for text in assignments:
        name, file = _split(text, list(by_name))
        if name is None:
            arrays.update(_whole_archive(Path(file), by_name))
        else:
            files.setdefault(name, []).append(file)
    for name, paths in files.items():
        if name in arrays:
            raise UsageError(f"input {name!r} is given twice")
        arrays[name] = _one_input(by_name[name], paths, prepare, dict(shapes or {}), seed, specs)
    missing = [name for name in by_name if name not in arrays]
    if missing:
        spec = by_name[missing[0]]
        raise UsageError(
            f"no value for input{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            hint=f"give it with --input {missing[0]}=FILE ({spec.dtype}, shape {list(spec.shape)}), "
            f"or --input {missing[0]}=random",
        )
    return {name: arrays[name] for name in by_name}


def _split(text: str, names: list[str]) -> tuple[str | None, str]:
    """The input and the file of ``x=FILE``; the input is None for an archive that names the inputs itself."""
    for name in sorted(names, key=len, reverse=True):
        if text.startswith(name + "="):
            return name, text[len(name) + 1 :]
    if not Path(text).exists() and text != RANDOM and "=" in text:
        require_input(text.partition("=")[0], names)
    if text.lower().endswith(".npz"):
        return None, text
    if len(names) != 1:
        raise UsageError(
            f"--input {text} does not say which input it is for; the inputs are {', '.join(names)}",
            hint=f"write --input {names[0]}={text}" if names else "the model takes no inputs",
        )
    return names[0], text


def _one_input(
    spec: InputSpec,
    files: Sequence[str],
    prepare: Preprocessing,
    shapes: dict[str, ShapeSpec],
    seed: int,
    specs: Sequence[InputSpec],
) -> Array:
    if list(files) == [RANDOM]:
        return random_input(spec, bind_sizes(specs, shapes), seed)
    parts = []
    for file in files:
        path = Path(file)
        suffix = path.suffix.lower()
        _require_file(path)
        if suffix == ".npy":
            parts.append(_fitting(_read_npy(path), spec, path))
        elif suffix == ".npz":
            parts.append(_fitting(_only_array(path, spec.name), spec, path))
        elif suffix in IMAGE_SUFFIXES or suffix in DICOM_SUFFIXES:
            parts.append(_image(path, spec, prepare, len(files)))
        else:
            known = ".npy, .npz, .png, .jpg, .dcm"
            raise UsageError(f"the kind of {file!r} is not known", hint=f"files may be {known}")
    if len(parts) == 1:
        return parts[0]
    if any(part.shape[1:] != parts[0].shape[1:] or not part.ndim for part in parts):
        raise ShapeError(f"the files for input {spec.name!r} have different shapes and make no batch")
    return np.concatenate(parts)


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    from dhc.cli.models import kind_of

    kind_of(str(path))  # raises with close names
    raise UsageError(f"{str(path)!r} is not a regular file")


def _read_npy(path: Path) -> Array:
    try:
        # Mapped: a header that declares more than the file holds fails before memory is taken.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError) as error:
        raise ModelError(f"the file is no array: {_line(error)}", path) from None


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file; what its members declare is checked before they are read.

    Raises:
        ModelError: it is no such file.
        ResourceError: a member declares more than 8 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                _check_member(archive, info, path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"the file is no .npz archive: {_line(error)}", path) from None


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    if info.file_size > _MAX_ARRAY:
        raise ResourceError(f"the member {info.filename} declares {info.file_size} bytes", _MAX_ARRAY, path)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    size = dtype.itemsize
    for dim in shape:
        size *= dim
    if size > info.file_size:
        raise ModelError(f"the member {info.filename} declares {size} bytes and holds {info.file_size}", path)


def _only_array(path: Path, name: str) -> Array:
    arrays = read_npz(path)
    if name in arrays:
        return arrays[name]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise UsageError(f"{str(path)!r} holds the arrays {', '.join(arrays)}, and none is named {name!r}")


def _whole_archive(path: Path, specs: Mapping[str, InputSpec]) -> dict[str, Array]:
    _require_file(path)
    arrays = read_npz(path)
    found = {name: _fitting(arrays[name], specs[name], path) for name in arrays if name in specs}
    if not found and len(arrays) == 1 and len(specs) == 1:
        (spec,) = specs.values()
        found = {spec.name: _fitting(next(iter(arrays.values())), spec, path)}
    if not found:
        raise UsageError(
            f"none of the arrays of {str(path)!r} ({', '.join(arrays)}) is an input; the inputs are {', '.join(specs)}"
        )
    return found


def _fitting(array: Array, spec: InputSpec, path: Path) -> Array:
    """The array in the element type of the input, where that loses nothing but precision."""
    from dhc.ir.dtypes import dtype

    wanted = dtype(spec.dtype).numpy
    if array.dtype != wanted and not np.can_cast(array.dtype, wanted, "same_kind"):
        raise TypeMismatchError(
            f"input {spec.name!r} takes {spec.dtype} and the file holds {array.dtype}",
            path,
            f"convert it: array.astype({wanted.name!r})",
        )
    if array.ndim != len(spec.shape):
        raise ShapeError(
            f"input {spec.name!r} has the shape {list(spec.shape)} and the array {list(array.shape)}",
            path,
            "add or remove axes",
        )
    return np.ascontiguousarray(array, dtype=wanted)


def _image(path: Path, spec: InputSpec, prepare: Preprocessing, count: int) -> Array:
    """An image in the layout of an input: [N,C,H,W], [N,H,W,C], [C,H,W] or [H,W]."""
    from dhc.ir.dtypes import dtype

    shape = spec.shape
    rank = len(shape)
    if rank not in (2, 3, 4):
        raise ShapeError(
            f"input {spec.name!r} has the shape {list(shape)}, and an image fits 2 to 4 axes", path, "give it as .npy"
        )
    channels_last = rank == 4 and shape[1] not in _CHANNELS and shape[3] in _CHANNELS
    if rank == 2:
        channels, height, width = 1, shape[0], shape[1]
    elif channels_last:
        channels, height, width = shape[3], shape[1], shape[2]
    else:
        channels, height, width = shape[-3], shape[-2], shape[-1]
    if isinstance(channels, int) and channels not in _CHANNELS:
        raise ShapeError(
            f"input {spec.name!r} has {channels} channels, and an image 1, 3 or 4", path, "give it as .npy"
        )
    if rank == 4 and isinstance(shape[0], int) and shape[0] != count:
        raise ShapeError(
            f"input {spec.name!r} takes a batch of {shape[0]} and {count} images are given",
            path,
            "give as many images, or compile with an open batch (--shape with N)",
        )
    picture = read_picture(path, channels if isinstance(channels, int) else None)
    values = prepare.apply(picture)
    values = resized(
        values.astype(np.float32, copy=False),
        height if isinstance(height, int) else values.shape[1],
        width if isinstance(width, int) else values.shape[2],
    )
    wanted = dtype(spec.dtype)
    if wanted.kind in "iu":
        values = np.clip(np.rint(values), wanted.min, wanted.max)
    if channels_last:
        values = values.transpose(1, 2, 0)
    values = values[0] if rank == 2 else values[None] if rank == 4 else values
    return np.ascontiguousarray(values).astype(wanted.numpy)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
