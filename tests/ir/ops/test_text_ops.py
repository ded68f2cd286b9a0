"""Strings, patterns that are refused, n-grams, encoded images."""

from __future__ import annotations

import io

import numpy as np
import pytest

from dhc.errors import DhcError, ResourceError, UnsupportedError
from dhc.ir import Graph, dtype
from dhc.ir.builder import Builder
from dhc.ir.ops import image
from dhc.ir.ops.pattern import full_matches, log_choices
from dhc.ir.ops.text import text_array


def words(*texts: str) -> np.ndarray:
    return text_array(texts, (len(texts),))


def call(op: str, *arrays: np.ndarray, **attrs) -> list:
    graph = Graph("g")
    inputs = [graph.input(f"x{i}", dtype(a.dtype), a.shape) for i, a in enumerate(arrays)]
    results = Builder(graph).call(op, *inputs, attrs=attrs)
    graph.output(*(results if isinstance(results, tuple) else (results,)))
    return graph.evaluate(*arrays)


def test_split_fills_up_with_empty_strings():
    parts, lengths = call("string_split", words("a,b,c", "", "d"), delimiter=",")
    assert parts.tolist() == [["a", "b", "c"], ["", "", ""], ["d", "", ""]]
    assert lengths.tolist() == [3, 1, 1]
    parts, lengths = call("string_split", words(" a  b c", ""), limit=1)
    assert parts.tolist() == [["a", "b c"], ["", ""]] and lengths.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("attrs", "wanted"),
    [
        ({}, ["Ab", "cd"]),
        ({"case": "upper", "stopwords": ("cd",)}, ["AB"]),
        ({"case": "lower", "stopwords": ("CD",)}, ["ab"]),
        ({"case": "lower", "stopwords": ("CD",), "case_sensitive": True}, ["ab", "cd"]),
        ({"stopwords": ("ab", "cd")}, [""]),
    ],
)
def test_normalisation(attrs, wanted):
    (found,) = call("string_normalize", words("Ab", "cd"), **attrs)
    assert found.tolist() == wanted


def test_numbers_and_text():
    numbers = np.array([1.5, -0.25, np.nan, np.inf, -np.inf, 1e30, 0.1], np.float32)
    (text,) = call("to_string", numbers)
    assert text.tolist()[2:5] == ["NaN", "INF", "-INF"]
    (back,) = call("from_string", text, dtype="f32")
    np.testing.assert_array_equal(back, numbers)
    assert call("from_string", words("7", "-3.0"), dtype="i8")[0].tolist() == [7, -3]
    for bad in ("300", "x", "1" * 200, "inf"):
        with pytest.raises(DhcError):
            call("from_string", words(bad), dtype="i8")


def test_labels():
    table = (words("a", "b"), np.array([5, 6]), np.array(-1))
    assert call("label_encode", words("b", "?", "a"), *table)[0].tolist() == [6, -1, 5]
    keys = np.array([np.nan, 1.0])
    found = call("label_encode", np.array([1.0, np.nan, 2.0]), keys, words("one nan", "one"), text_array(["?"], ()))
    assert found[0].tolist() == ["one", "one nan", "?"]


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+", r"(\w+\.)*x", "((a*)*)*", ".*.*.*.*.*.*x", "(x+x+)+y", "(a?){30}a{30}"]
)
def test_patterns_that_backtrack_are_refused_at_once(pattern):
    with pytest.raises(UnsupportedError, match="too many steps"):
        full_matches(pattern, ["a" * 60])
    assert log_choices(pattern, 60) > 24


@pytest.mark.parametrize("pattern", ["(?=a)a", r"(a)\1", "(?<!a)b", "(", ")", "a" * 1001, "[z-a]", "*a"])
def test_patterns_that_are_not_supported(pattern):
    with pytest.raises(UnsupportedError):
        full_matches(pattern, ["a"])


def test_patterns_that_match():
    assert full_matches(r"(\W|^)[\w.\-]{0,25}@(yahoo|gmail)\.com(\W|$)", ["me@gmail.com", "me@x.com"]) == [True, False]
    assert full_matches("[]x]+?(?:ab){2,}", ["x]abab", "xab", ""]) == [True, False, False]
    assert full_matches("", ["", "a"]) == [True, False]
    assert full_matches(r"\d+\)", ["12)", "12"]) == [True, False]


# ---- n-grams ---------------------------------------------------------------------------------------------------------


def brute_force(x: np.ndarray, gram: list[int], skips: int) -> int:
    n = len(gram)
    strides = range(1, 2 if n == 1 else skips + 2)
    return sum(
        [x[start + k * stride] for k in range(n)] == gram
        for stride in strides
        for start in range(max(0, len(x) - (n - 1) * stride))
    )


@pytest.mark.parametrize("mode", ["tf", "idf", "tfidf"])
@pytest.mark.parametrize("skips", [0, 1, 5])
def test_counts_of_ngrams(mode, skips):
    rng = np.random.default_rng(skips)
    x = rng.integers(0, 3, (4, 11))
    grams = [[0], [1, 2], [2, 2], [0, 1, 2]]
    table = np.array([g + [0] * (3 - len(g)) for g in grams])
    weights = np.array([0.5, 2, 3, 4], np.float32)
    columns = np.array([3, 0, 1, 5])
    lengths = np.array([len(g) for g in grams])
    (found,) = call("tfidf", x, table, lengths, columns, weights, size=6, max_skip=skips, mode=mode)
    wanted = np.zeros((4, 6), np.float32)
    for row in range(4):
        for gram, column, weight in zip(grams, columns, weights):
            count = brute_force(x[row].tolist(), gram, skips)
            wanted[row, column] = {"tf": count, "idf": weight * (count > 0), "tfidf": weight * count}[mode]
    np.testing.assert_array_equal(found, wanted)


# ---- images ----------------------------------------------------------------------------------------------------------


def test_decoded_pixels(monkeypatch):
    pillow = pytest.importorskip("PIL.Image", reason="needs the extra `imaging`")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    file = io.BytesIO()
    pillow.fromarray(pixels).save(file, "PNG")
    data = np.frombuffer(file.getvalue(), np.uint8)
    np.testing.assert_array_equal(call("decode_image", data)[0], pixels)
    np.testing.assert_array_equal(call("decode_image", data, pixels="bgr")[0], pixels[..., ::-1])
    assert call("decode_image", data, pixels="gray")[0].shape == (3, 5, 1)
    for damaged in (data[:30], data[:0], np.zeros(100, np.uint8)):
        with pytest.raises(DhcError, match="cannot be decoded"):
            call("decode_image", damaged)
    monkeypatch.setattr(image, "MAX_PIXELS", 14)
    with pytest.raises(ResourceError, match="declares 5 x 3 pixels"):
        call("decode_image", data)
