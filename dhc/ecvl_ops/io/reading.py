"""Reading in this process: recognise, check, decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dhc_runtime.errors import DhcError, ModelError, ResourceError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Format, Header, Request, recognise
from dhc.ecvl_ops.io.limits import Limits, check_file
from dhc.ecvl_ops.io.quiet import quiet
from dhc.ecvl_ops.io.source import Source

Found = TypeVar("Found")


def probe_here(source: Source, limits: Limits) -> Header:
    """The header; nothing is decoded.

    Raises:
        DhcError: what is wrong with the file, with its name.
    """

    def header(known: Format) -> Header:
        found: Header = known.code().probe(source, limits)
        return found

    return _guarded(source, limits, header)


def read_here(source: Source, limits: Limits, request: Request) -> Image:
    """The image.

    Raises:
        DhcError: what is wrong with the file, with its name.
    """

    def image(known: Format) -> Image:
        found: Image = known.code().read(source, limits, request)
        return found

    return _guarded(source, limits, image)


def _guarded(source: Source, limits: Limits, action: Callable[[Format], Found]) -> Found:
    check_file(source.size, limits, source.name)
    known = recognise(source)
    try:
        with quiet():
            return action(known)
    except MemoryError:
        raise ResourceError("decoding needs more memory than there is", where=source.name) from None
    except DhcError as error:
        error.where = error.where or source.name
        raise
    except BaseException as error:  # the formats' libraries raise whatever a damaged file leads them to
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # that of codecs in Rust
            raise
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the {known.name} file cannot be decoded: {type(error).__name__}: {text}", source.name, "it is damaged"
        ) from error
