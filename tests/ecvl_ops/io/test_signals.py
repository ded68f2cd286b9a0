"""EDF and BDF signals."""

from __future__ import annotations

import numpy as np
import pytest

from dhc.ecvl_ops import io
from dhc.errors import ModelError, UnsupportedError


def edf(
    labels: list[str], counts: list[int], records: int, width: int = 2, reserved: str = ""
) -> tuple[bytes, list[np.ndarray]]:
    """A file and the stored numbers of each channel."""
    rng = np.random.default_rng(0)
    high = (1 << (8 * width - 1)) - 1
    values = [rng.integers(-high - 1, high, (records, n), endpoint=True) for n in counts]
    field = lambda text, size: str(text).ljust(size).encode("ascii")  # noqa: E731
    count = len(labels)
    head = (
        (b"\xffBIOSEMI" if width == 3 else field("0", 8))
        + field("patient", 80)
        + field("recording", 80)
        + field("01.01.26", 8)
    )
    head += (
        field("00.00.00", 8)
        + field(256 * (count + 1), 8)
        + field(reserved, 44)
        + field(records, 8)
        + field(2, 8)
        + field(count, 4)
    )
    for items, size in (
        (labels, 16), ([""] * count, 80), (["uV"] * count, 8), ([-100] * count, 8), ([300] * count, 8),
        ([-high - 1] * count, 8), ([high] * count, 8), ([""] * count, 80), (counts, 8), ([""] * count, 32),
    ):  # fmt: skip
        head += b"".join(field(item, size) for item in items)
    body = bytearray()
    for record in range(records):
        for channel in values:
            for number in channel[record]:
                body += int(number).to_bytes(width, "little", signed=True)
    return bytes(head + body), [channel.reshape(-1) for channel in values]


@pytest.mark.parametrize("width", [2, 3])
def test_channels_in_physical_units(width: int) -> None:
    content, stored = edf(["Fp1", "Fp2"], [5, 5], 4, width)
    found = io.read(content, trusted=True)
    assert found.layout == "CW" and found.values.shape == (2, 20)
    high = (1 << (8 * width - 1)) - 1
    wanted = (np.stack(stored) + high + 1.0) * 400 / (2 * high + 1) - 100
    assert np.allclose(found.values, wanted, atol=1e-3)
    assert found.metadata["labels"] == ["Fp1", "Fp2"] and found.metadata["rate"] == 2.5
    raw = io.read(content, rescale=False, region={"W": (3, 9)}, trusted=True)
    assert np.array_equal(raw.values, np.stack(stored)[:, 3:9].astype(np.float32))


def test_other_rates_are_named_and_annotations_left_out() -> None:
    content, stored = edf(["ECG", "Resp", "EDF Annotations"], [8, 2, 3], 3)
    found = io.read(content, trusted=True)
    assert found.values.shape == (1, 24) and found.metadata["other rates"] == ["Resp"]
    assert found.metadata["labels"] == ["ECG"] and len(stored) == 3


def test_what_is_no_signal_is_refused() -> None:
    content, _ = edf(["EDF Annotations"], [8], 3)
    with pytest.raises(UnsupportedError, match="no signals"):
        io.read(content, trusted=True)
    content, _ = edf(["ECG"], [8], 3)
    with pytest.raises(ModelError, match="holds"):
        io.read(content[:-4], trusted=True)
    content, _ = edf(["ECG"], [8], 3, reserved="EDF+D")
    with pytest.raises(UnsupportedError, match="discontinuous"):
        io.read(content, trusted=True)
