"""EDF, EDF+ (continuous) and BDF signals: one array of channels by samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dhc_runtime.errors import ModelError, UnsupportedError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request
from dhc.ecvl_ops.io.limits import Limits, check_declared, check_stored
from dhc.ecvl_ops.io.region import slices
from dhc.ecvl_ops.io.source import Source

_ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
_MOST_SIGNALS = 4096


@dataclass(frozen=True)
class _Signals:
    labels: list[str]
    units: list[str]
    physical: np.ndarray
    digital: np.ndarray
    counts: list[int]
    records: int
    seconds: float
    offset: int
    width: int


def probe(source: Source, limits: Limits) -> Header:
    """Channels, samples and sampling rate."""
    return _header(source, limits)[0]


def read(source: Source, limits: Limits, request: Request) -> Image:
    """``CW``: channels by samples, in their physical units (``rescale=False``: as stored, also float32).

    Channels with another number of samples a record than the first one are left out and named in the metadata.
    """
    header, signals, chosen = _header(source, limits)
    part = slices(header.layout, header.shape, request.region, source.name)
    record = sum(signals.counts)
    with source.open() as stream:
        stream.seek(signals.offset)
        content = stream.read(signals.records * record * signals.width)
    if signals.width == 2:
        stored = np.frombuffer(content, "<i2").reshape(signals.records, record)
    else:  # 24 bits
        parts = np.frombuffer(content, np.uint8).reshape(signals.records, record, 3).astype(np.int32)
        stored = (parts[..., 0] | parts[..., 1] << 8 | parts[..., 2] << 16) << 8 >> 8
    starts = np.cumsum([0, *signals.counts])
    rows = []
    for n in chosen:
        values = stored[:, starts[n] : starts[n + 1]].reshape(-1).astype(np.float32)
        if request.rescale:
            low, high = signals.digital[n]
            gain = (signals.physical[n, 1] - signals.physical[n, 0]) / (high - low)
            values = values * np.float32(gain) + np.float32(signals.physical[n, 0] - gain * low)
        rows.append(values[part[1]])
    return Image(np.stack(rows), "CW", "none", metadata=header.metadata)


def _header(source: Source, limits: Limits) -> tuple[Header, _Signals, list[int]]:
    where = source.name
    with source.open() as stream:
        fixed = stream.read(256)
        width = 3 if fixed[:1] == b"\xff" else 2
        count = int(_number(fixed[252:256], "the number of signals", where))
        if not 1 <= count <= _MOST_SIGNALS:
            raise ModelError(f"the file declares {count} signals", where)
        fields = stream.read(256 * count)
    if len(fields) != 256 * count:
        raise ModelError("the header is truncated", where)
    if b"+D" in fixed[192:236]:
        raise UnsupportedError("discontinuous EDF+ files are not read", where=where)
    records, seconds = int(_number(fixed[236:244], "records", where)), _number(fixed[244:252], "seconds", where)
    if seconds < 0 or records == 0 or records < -1:
        raise ModelError(f"the file declares {records} records of {seconds} s", where)

    def column(start: int, size: int) -> list[bytes]:
        begin = start * count
        return [fields[begin + n * size : begin + (n + 1) * size] for n in range(count)]

    labels = [text.decode("latin-1").strip() for text in column(0, 16)]
    units = [text.decode("latin-1").strip() for text in column(96, 8)]
    ends = [
        [_number(text, name, where) for text in column(at, 8)]
        for at, name in (
            (104, "the physical minimum"),
            (112, "the physical maximum"),
            (120, "the digital minimum"),
            (128, "the digital maximum"),
        )
    ]
    counts = [int(_number(text, "samples of a record", where)) for text in column(216, 8)]
    if any(not 0 < n <= 1 << 26 for n in counts):
        raise ModelError(f"the file declares {counts} samples a record", where)
    offset = int(_number(fixed[184:192], "the size of the header", where))
    if offset != 256 * (count + 1):
        raise ModelError(f"the file declares a header of {offset} bytes for {count} signals", where)
    size = sum(counts) * width
    there = (source.size - offset) // size
    if records == -1:  # a recording that was not closed
        records = there
    check_stored(records * size, source.size - offset, where)
    chosen = [n for n in range(count) if labels[n] not in _ANNOTATIONS]
    if not chosen or records == 0:
        raise UnsupportedError("the file holds annotations and no signals", where=where)
    chosen = [n for n in chosen if counts[n] == counts[chosen[0]]]
    physical, digital = np.array(ends[:2]).T, np.array(ends[2:]).T
    if any(digital[n, 0] >= digital[n, 1] or physical[n, 0] == physical[n, 1] for n in chosen):
        raise ModelError("a signal has a range without length", where)
    shape = (len(chosen), records * counts[chosen[0]])
    check_declared(shape, np.float32, limits, where)
    left = [labels[n] for n in range(count) if n not in chosen and labels[n] not in _ANNOTATIONS]
    metadata: dict[str, Any] = {
        "labels": [labels[n] for n in chosen],
        "units": [units[n] for n in chosen],
        "rate": counts[chosen[0]] / seconds if seconds else 0.0,
        "other rates": left,
    }
    signals = _Signals(labels, units, physical, digital, counts, records, seconds, offset, width)
    return Header("EDF", shape, "CW", "float32", "none", metadata=metadata), signals, chosen


def _number(text: bytes, what: str, where: str) -> float:
    try:
        value = float(text.decode("ascii").strip())
    except (UnicodeDecodeError, ValueError):
        raise ModelError(f"{what}: {text[:20]!r} is no number", where) from None
    if not math.isfinite(value):
        raise ModelError(f"{what}: {value}", where)
    return value
