"""Encoded images (PNG, JPEG, ...) as pixels, through pillow. Interpreter only."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from dhc_runtime.errors import DhcError, MissingExtraError, ResourceError

from dhc.ir.dtypes import u8
from dhc.ir.inference import require_rank
from dhc.ir.kinds import Structural
from dhc.ir.op import Attr, Call, NotDifferentiable, OpDef, Operand
from dhc.ir.registry import register
from dhc.ir.symbols import sym
from dhc.ir.types import TensorType

MAX_PIXELS = 2**27
"""Images that declare more are refused before they are decoded."""
FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def _type(call: Call) -> list[TensorType]:
    require_rank(call, 0, 1)
    channels = 1 if call.attrs.pixels == "gray" else 3
    return [TensorType(u8, (sym(call.attrs.height), sym(call.attrs.width), channels))]


def _decode(call: Call, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("imaging", "decoding images (pillow)", str(call.location)) from None
    where = str(call.location)
    with warnings.catch_warnings():
        # The limit below is the stricter one.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data.tobytes()), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise ResourceError(
                        f"the image declares {width} x {height} pixels, more than the {MAX_PIXELS} allowed",
                        MAX_PIXELS,
                        where,
                    )
                pixels = np.array(image.convert("L" if call.attrs.pixels == "gray" else "RGB"), np.uint8)
        except Image.DecompressionBombError:
            raise ResourceError("the image declares far too many pixels", MAX_PIXELS, where) from None
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
            raise DhcError(f"the image cannot be decoded: {error}", where) from None
    if call.attrs.pixels == "gray":
        return pixels[:, :, None]
    return np.ascontiguousarray(pixels[:, :, ::-1]) if call.attrs.pixels == "bgr" else pixels


# A portable pixmap of 2 x 1 pixels: needs no encoder.
_EXAMPLE = b"P6 2 1 255\n" + bytes([255, 0, 0, 0, 128, 7])

register(
    OpDef(
        name="decode_image",
        doc="Pixels [height, width, channel] of an encoded image: BMP, JPEG, JPEG 2000, PNG, PNM, TIFF or WebP.",
        operands=(Operand("data", frozenset({u8})),),
        attrs=(
            Attr("pixels", "str", "rgb", "order of the channels", ("rgb", "bgr", "gray")),
            Attr("height", "symbol", doc="rows of the image"),
            Attr("width", "symbol", doc="columns of the image"),
        ),
        infer=_type,
        reference=_decode,
        kind=Structural("host"),
        grad=NotDifferentiable("encoded bytes have no derivative"),
        examples=lambda: [([np.frombuffer(_EXAMPLE, np.uint8)], {"pixels": "bgr"})],
        source="ONNX ImageDecoder",
    )
)
