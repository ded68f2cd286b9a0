"""When a type written down agrees with the inferred one.

The type of a value may say more than inference knows: quantization, image meaning, or a size that a pass or the user
has made more exact. It may never contradict it.
"""

from __future__ import annotations

from typing import Any

from dhc.ir.symbols import Dim
from dhc.ir.types import ImageType, LooseTensorType, OptionalType, SequenceType, TensorType, accepts


def dims_agree(a: Dim, b: Dim) -> bool:
    """False when two sizes certainly differ: ``N`` and ``N+1``, ``2`` and ``3``; ``N`` may still be 3."""
    difference = a - b
    return not isinstance(difference, int) or difference == 0


def type_difference(given: Any, inferred: Any) -> str | None:
    """Why `given` cannot stand where `inferred` was found; None when it can."""
    message = f"the type is given as {given}, inference says {inferred}"
    if isinstance(given, (SequenceType, OptionalType)):
        if type(given) is not type(inferred):
            return message
        return None if type_difference(given.element, inferred.element) is None else message
    if isinstance(given, LooseTensorType) or isinstance(inferred, LooseTensorType):
        tensors = (LooseTensorType, TensorType)
        fits = isinstance(given, tensors) and isinstance(inferred, tensors) and accepts(inferred, given)
        return None if fits else message
    if not isinstance(given, TensorType) or not isinstance(inferred, TensorType):
        return message
    if given.dtype != inferred.dtype or given.rank != inferred.rank:
        return message
    if not all(dims_agree(a, b) for a, b in zip(given.shape, inferred.shape)):
        return message
    if inferred.quant is not None and given.quant != inferred.quant:
        return message
    if isinstance(inferred, ImageType) and not (isinstance(given, ImageType) and given.color == inferred.color):
        return message
    return None
