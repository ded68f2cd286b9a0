"""The best classes of a classifier, with their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dhc_runtime.errors import ShapeError, UsageError

_MAX_LABELS = 1 << 24


def read_labels(path: Path) -> list[str]:
    """Names of classes, one a line.

    Raises:
        UsageError: the file cannot be read or is no text.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_MAX_LABELS)
    except OSError as error:
        raise UsageError(f"cannot read the labels: {error.strerror}", path, "check the path") from None
    except UnicodeDecodeError:
        raise UsageError("the labels are not text", path, "give a text file with one name a line") from None
    return text.splitlines()


def top_classes(
    results: Mapping[str, np.ndarray[Any, Any]], count: int, labels: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The largest scores of the first output that has the form of class scores: ``[C]``, ``[N,C]`` or ``[N,C,1,...]``.

    Raises:
        ShapeError: no output has that form.
        UsageError: there are fewer labels than classes.
    """
    name, scores = _scores(results)
    classes = scores.shape[1]
    if labels is not None and len(labels) < classes:
        raise UsageError(f"there are {len(labels)} labels and the output {name!r} has {classes} classes")
    found = []
    for image, row in enumerate(scores):
        # Stable: equal scores keep the order of their classes.
        for rank, index in enumerate(np.argsort(-row, kind="stable")[:count]):
            label = None if labels is None else labels[index]
            found.append({"output": name, "image": image, "rank": rank + 1, "class": int(index), "label": label})
            found[-1]["score"] = float(row[index])
    return found


def _scores(results: Mapping[str, np.ndarray[Any, Any]]) -> tuple[str, np.ndarray[Any, Any]]:
    for name, array in results.items():
        trailing = array.shape[2:]
        if array.ndim >= 1 and array.dtype.kind not in "cSUO" and all(size == 1 for size in trailing) and array.size:
            values = array.astype(np.float64)
            return name, values[None] if array.ndim == 1 else values.reshape(array.shape[:2])
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in results.items())
    raise ShapeError(f"no output has the form of class scores [N, C]: {shapes}", hint="leave out --top-k, or use -o")
