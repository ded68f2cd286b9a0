"""Strings, labels, n-grams and encoded images."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from dhc.frontend.onnx.context import NodeContext
from dhc.frontend.onnx.handlers import onnx_op
from dhc.ir.dtypes import dtype as as_dtype
from dhc.ir.dtypes import f32, i64, string
from dhc.ir.graph import Value
from dhc.ir.ops.text import text_array


@onnx_op("StringConcat", since=20)
def string_concat(n: NodeContext) -> Value:
    """Element by element."""
    return n.b.string_concat(n.value(0), n.value(1))


@onnx_op("StringSplit", since=20)
def string_split(n: NodeContext) -> Any:
    """Parts and their number."""
    return n.b.string_split(n.value(0), delimiter=n.attr("delimiter", ""), limit=n.attr("maxsplit", -1))


@onnx_op("StringNormalizer", since=10)
def string_normalizer(n: NodeContext) -> Value:
    """Stop words and case."""
    case = n.attr("case_change_action", "NONE").lower()
    sensitive = bool(n.attr("is_case_sensitive", 0))
    return n.b.string_normalize(
        n.value(0), case=case, case_sensitive=sensitive, stopwords=tuple(n.attr("stopwords") or ())
    )


@onnx_op("RegexFullMatch", since=20)
def regex_full_match(n: NodeContext) -> Value:
    """Whole strings against a pattern."""
    return n.b.regex_full_match(n.value(0), pattern=n.require_attr("pattern"))


@onnx_op("ImageDecoder", since=20)
def image_decoder(n: NodeContext) -> Value:
    """Pixels of an encoded image."""
    pixels = {"RGB": "rgb", "BGR": "bgr", "Grayscale": "gray"}.get(n.attr("pixel_format", "RGB"))
    if pixels is None:
        n.invalid(f"there is no pixel format {n.attr('pixel_format')!r}")
    return n.b.decode_image(n.value(0), pixels=pixels)


# ---- labels ----------------------------------------------------------------------------------------------------------


def _listed(n: NodeContext, role: str) -> np.ndarray:
    """Keys or values, whichever of the attributes holds them."""
    found = n.attr(f"{role}_tensor")
    if found is not None:
        return np.asarray(found).reshape(-1)
    for suffix, kind in (("strings", None), ("int64s", np.int64), ("floats", np.float32)):
        given = n.attr(f"{role}_{suffix}")
        if given is not None:
            return text_array(given, (len(given),)) if kind is None else np.array(given, kind)
    return n.invalid(f"the attributes of the {role} are missing")


def _default(n: NodeContext, values: np.ndarray) -> np.ndarray:
    given = n.attr("default_tensor")
    if given is not None:
        return np.asarray(given).reshape(-1)[:1].reshape(())
    if values.dtype == object:
        return text_array([n.attr("default_string", "_Unused")], ())
    if values.dtype.kind == "f":
        return np.array(n.attr("default_float", 0.0), values.dtype)
    return np.array(n.attr("default_int64", -1), values.dtype)


@onnx_op("LabelEncoder", since=2, domain="ai.onnx.ml")
def label_encoder(n: NodeContext) -> Value:
    """A table of keys and values; between numbers it is comparisons and a gather."""
    x, keys, values = n.value(0), _listed(n, "keys"), _listed(n, "values")
    default = _default(n, values)
    if len(keys) != len(values) or default.dtype != values.dtype:
        n.invalid(f"{len(keys)} keys of {keys.dtype}, {len(values)} values of {values.dtype}, default {default.dtype}")
    if as_dtype(keys.dtype) != x.dtype:
        n.invalid(f"the keys are {as_dtype(keys.dtype)}, the operand is {x.dtype}")
    if x.dtype == string or values.dtype == object or not len(keys):
        tables = [n.b.constant(array) for array in (keys, values, default)]
        return n.b.label_encode(x, *tables)
    return _numeric_encoder(n, x, keys, values, default)


def _numeric_encoder(n: NodeContext, x: Value, keys: np.ndarray, values: np.ndarray, default: np.ndarray) -> Value:
    wide = n.b.reshape(x, shape=(*x.shape, 1))
    hit = n.b.eq(wide, n.b.constant(keys))
    if keys.dtype.kind == "f" and np.isnan(keys).any():
        hit = n.b.logical_or(hit, n.b.logical_and(n.b.is_nan(wide), n.b.constant(np.isnan(keys))))
    # The last of equal keys counts, as in a dictionary.
    position = n.b.argmax(n.b.cast(hit, dtype="i32"), axis=-1, last=True)
    found = n.b.gather(n.b.constant(values), position, axis=0)
    return n.b.where(n.b.reduce_any(hit, axes=(-1,)), found, n.b.constant(default))


# ---- n-grams ---------------------------------------------------------------------------------------------------------


@onnx_op("TfIdfVectorizer", since=9)
def tfidf_vectorizer(n: NodeContext) -> Value:
    """Weighted counts of n-grams; words are looked up first and become numbers."""
    x = n.value(0)
    words = n.attr("pool_strings")
    pool: np.ndarray
    if words is not None:
        numbers = {word: i for i, word in enumerate(dict.fromkeys(words))}
        pool = np.array([numbers[word] for word in words], np.int64)
        keys = n.b.constant(text_array(numbers, (len(numbers),)))
        x = n.b.label_encode(x, keys, np.arange(len(numbers)), np.array(-1))
    else:
        pool = np.array(n.require_attr("pool_int64s"), np.int64)
        x = x if x.dtype == i64 else n.b.cast(x, dtype=i64)
    counts, columns = n.require_attr("ngram_counts"), n.require_attr("ngram_indexes")
    grams, used = _grams(n, pool, counts, columns)
    weights = n.attr("weights") or [1.0] * len(columns)
    if len(weights) != len(columns):
        n.invalid(f"{len(weights)} weights for {len(columns)} n-grams")
    longest = max((len(g) for g in grams), default=1)
    table = np.zeros((len(grams), longest), np.int64)
    for row, gram in enumerate(grams):
        table[row, : len(gram)] = gram
    mode = n.require_attr("mode").lower()
    return n.b.tfidf(
        x,
        n.b.constant(table, i64),
        n.b.constant(np.array([len(g) for g in grams], np.int64), i64),
        n.b.constant(np.array([columns[i] for i in used], np.int64), i64),
        n.b.constant(np.array([weights[i] for i in used], np.float32), f32),
        size=max(columns) + 1,
        max_skip=n.require_attr("max_skip_count"),
        mode=mode,
    )


def _grams(n: NodeContext, pool: np.ndarray, counts: list[int], columns: list[int]) -> tuple[list[Any], list[int]]:
    """The n-grams that are counted, and their numbers in the pool."""
    least, most = n.require_attr("min_gram_length"), n.require_attr("max_gram_length")
    if not 1 <= least <= most or n.require_attr("max_skip_count") < 0:
        n.invalid("the lengths of n-grams and of skips contradict each other")
    if not columns or min(columns) < 0 or max(columns) >= 2**24:
        n.invalid("ngram_indexes must be numbers from 0 on")
    bounds = [*counts, len(pool)]
    grams: list[Any] = []
    used: list[int] = []
    number = 0
    for length, (start, end) in enumerate(pairwise(bounds), 1):
        if not 0 <= start <= end <= len(pool) or (end - start) % length:
            n.invalid(f"ngram_counts {counts} do not fit a pool of {len(pool)}")
        for first in range(start, end, length):
            if least <= length <= most:
                grams.append(pool[first : first + length])
                used.append(number)
            number += 1
    if number != len(columns):
        n.invalid(f"{len(columns)} ngram_indexes for {number} n-grams")
    return grams, used
