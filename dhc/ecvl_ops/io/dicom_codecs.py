"""Lossless and 12-bit JPEG in DICOM by imagecodecs, as a decoder plug-in of pydicom.

pydicom itself decodes these only through libraries under the GPL or through GDCM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_EXTENDED = "1.2.840.10008.1.2.4.51"
_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_LABEL = "dhc-imagecodecs"

DECODER_DEPENDENCIES = dict.fromkeys((_EXTENDED, *_LOSSLESS), ("imagecodecs",))
"""What pydicom tells users to install."""


def is_available(uid: str) -> bool:
    """True when imagecodecs is installed and the transfer syntax is one of ours (pydicom asks)."""
    if uid not in DECODER_DEPENDENCIES:
        return False
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        return False
    return True


def decode_frame(src: bytes, runner: Any) -> bytes:
    """The samples of one frame (called by pydicom).

    Raises:
        ValueError: the frame is damaged, or of another size than the file says.
    """
    import imagecodecs

    decode = imagecodecs.jpegsof3_decode if runner.transfer_syntax in _LOSSLESS else imagecodecs.jpeg8_decode
    samples = np.asarray(decode(src))
    wanted = (runner.rows, runner.columns, *((runner.samples_per_pixel,) if runner.samples_per_pixel > 1 else ()))
    if samples.shape != wanted:
        raise ValueError(f"a frame of {samples.shape} samples where the file says {wanted}")
    runner.set_option("bits_allocated", samples.dtype.itemsize * 8)
    runner.set_option("planar_configuration", 0)
    return np.ascontiguousarray(samples).tobytes()


def install() -> None:
    """Adds the decoder to pydicom's, once."""
    from pydicom.pixels.decoders.base import get_decoder

    for uid in DECODER_DEPENDENCIES:
        decoder = get_decoder(uid)
        if _LABEL not in decoder._available and _LABEL not in decoder._unavailable:
            decoder.add_plugin(_LABEL, (__name__, "decode_frame"))
