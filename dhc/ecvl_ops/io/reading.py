"""Reading in this process: recognise, check, decode."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from dhc_runtime.errors import DhcError, ModelError, ResourceError

from dhc.ecvl_ops.image import Image
from dhc.ecvl_ops.io.formats import Format, Header, Request, recognise
from dhc.ecvl_ops.io.limits import Limits, check_file
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What libraries print of a file on their own is left out: what matters becomes an error."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "tifffile", "nibabel", "PIL")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _guarded(source: Source, limits: Limits, action: Callable[[Format], Found]) -> Found:
    check_file(source.size, limits, source.name)
    known = recognise(source)
    try:
        with _quiet():
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
