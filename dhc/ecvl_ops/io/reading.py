"""Reading in this process: recognise, check, decode."""

from __future__ import annotations

from dhc_runtime.errors import DhcError, ResourceError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Header, Request, recognise
from dhc.ecvl_ops.io.limits import Limits, check_file
from dhc.ecvl_ops.io.source import Source


def probe_here(source: Source, limits: Limits) -> Header:
    """The header; nothing is decoded."""
    check_file(source.size, limits, source.name)
    with_format = recognise(source)
    try:
        header: Header = with_format.code().probe(source, limits)
    except MemoryError:
        raise ResourceError("the header needs more memory than there is", where=source.name) from None
    return header


def read_here(source: Source, limits: Limits, request: Request) -> Image:
    """The image.

    Raises:
        DhcError: what is wrong with the file, with its name.
    """
    check_file(source.size, limits, source.name)
    with_format = recognise(source)
    try:
        image: Image = with_format.code().read(source, limits, request)
    except MemoryError:
        raise ResourceError("decoding needs more memory than there is", where=source.name) from None
    except DhcError as error:
        error.where = error.where or source.name
        raise
    return image
