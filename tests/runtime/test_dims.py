"""Size expressions: values, errors, and solving for the sizes of inputs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhc_runtime.dims import bind_shapes, bindable, check_expression, evaluate, format_expression, solve, symbols_of
from dhc_runtime.errors import ArtifactError, ModelError


@pytest.mark.parametrize(
    ("expr", "value"),
    [
        (7, 7),
        ("N", 5),
        (["+", "N", 1, 2], 8),
        (["*", "N", "H", 2], 30),
        (["-", "N", "H"], 2),
        (["//", -7, 2], -4),
        (["%", -7, 2], 1),
        (["ceil/", 7, 2], 4),
        (["ceil/", -7, 2], -3),
        (["max", "N", "H", 9], 9),
        (["min", "N", "H", 9], 3),
        (["select>", "N", 1, 2], 1),
        (["select>", 0, 1, ["//", 1, 1]], 1),
        (["select>", 1, 4, ["//", 1, 0]], 4),
    ],
)
def test_values(expr: Any, value: int) -> None:
    assert evaluate(check_expression(expr, "here"), {"N": 5, "H": 3}) == value


@pytest.mark.parametrize(
    "expr",
    [
        1.5, True, None, {}, [], ["+"], ["+", 1], ["-", 1, 2, 3], ["**", 2, 3], [["+"], 1, 2], ["", 1, 2], "", 1 << 62,
        ["select>", 1, 2], ["//", 1],
    ],
)  # fmt: skip
def test_malformed_expressions_are_refused(expr: Any) -> None:
    with pytest.raises(ArtifactError):
        check_expression(expr, "here")


def test_deep_and_long_expressions_are_refused() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = ["+", deep, 1]
    with pytest.raises(ArtifactError, match="too long"):
        check_expression(deep, "here")
    with pytest.raises(ArtifactError, match="too long"):
        check_expression(["+"] + [1] * 5000, "here")


def test_errors_of_evaluation() -> None:
    with pytest.raises(ModelError, match="divides by zero"):
        evaluate(["//", 1, "N"], {"N": 0})
    with pytest.raises(ModelError, match="out of range"):
        evaluate(["*", "N", "N"], {"N": 1 << 40})
    with pytest.raises(ArtifactError, match="'M' is not known"):
        evaluate("M", {})


def test_text() -> None:
    assert format_expression(["*", ["+", "N", 1], 2]) == "(N+1)*2"
    assert format_expression(["ceil/", "N", 2]) == "ceil(N/2)"
    assert format_expression(["max", "N", ["-", "M", 1]]) == "max(N, M-1)"


exprs = st.recursive(
    st.one_of(st.integers(-9, 9), st.sampled_from(["A", "B", "C"])),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "*", "max", "min"]), inner, inner).map(list),
        st.tuples(st.sampled_from(["-", "//", "%", "ceil/"]), inner, inner).map(list),
        st.tuples(st.just("select>"), inner, inner, inner).map(list),
    ),
    max_leaves=8,
)
PYTHON = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "-": lambda a, b: a - b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "ceil/": lambda a, b: -((-a) // b),
    "max": max,
    "min": min,
}


def by_python(expr: Any, symbols: dict[str, int]) -> int:
    if isinstance(expr, int):
        return expr
    if isinstance(expr, str):
        return symbols[expr]
    if expr[0] == "select>":
        return by_python(expr[2] if by_python(expr[1], symbols) > 0 else expr[3], symbols)
    return int(PYTHON[expr[0]](by_python(expr[1], symbols), by_python(expr[2], symbols)))


@given(exprs, st.fixed_dictionaries({name: st.integers(0, 50) for name in "ABC"}))
def test_values_agree_with_python(expr: Any, symbols: dict[str, int]) -> None:
    try:
        expected = by_python(expr, symbols)
    except ZeroDivisionError:
        with pytest.raises(ModelError):
            evaluate(expr, symbols)
    else:
        assert evaluate(expr, symbols) == expected


@given(exprs, st.fixed_dictionaries({name: st.integers(0, 20) for name in "ABC"}), st.sampled_from("ABC"))
def test_solving_finds_a_solution_of_the_equation(expr: Any, symbols: dict[str, int], unknown: str) -> None:
    known = {name: value for name, value in symbols.items() if name != unknown}
    try:
        value = evaluate(expr, symbols)
        solution = solve(expr, value, known)
    except ModelError:
        return
    if solution is not None:
        assert solution[0] == unknown
        assert evaluate(expr, {**known, unknown: solution[1]}) == value


def bound(shapes: list[list[Any]], actual: list[tuple[int, ...]]) -> tuple[dict[str, int], list[str]]:
    symbols: dict[str, int] = {}
    return symbols, bind_shapes(["a", "b", "c"][: len(shapes)], shapes, actual, symbols)


def test_symbols_are_bound_and_solved_in_any_order() -> None:
    symbols, problems = bound([[["+", ["*", 2, "N"], "M"]], ["M", ["-", "K", 1]], ["M"]], [(11,), (3, 4), (3,)])
    assert not problems
    assert symbols == {"M": 3, "N": 4, "K": 5}


@pytest.mark.parametrize(
    ("shapes", "actual", "words"),
    [
        ([["N", 3]], [(2, 4)], ["input 'a'", "[N, 3]", "[2, 4]", "axis 1 must be 3, is 4"]),
        ([["N"], ["N"]], [(2,), (5,)], ["input 'b'", "N = 2 from 'a' axis 0", "is 5"]),
        ([[["*", 2, "N"]]], [(7,)], ["axis 0 must be 2*N, is 7", "no value of N"]),
        ([["N"], [["//", "N", 2]]], [(8,), (3,)], ["must be N//2 = 4", "is 3"]),
        ([["N"]], [(2, 2)], ["expected 1 dimensions [N]", "got 2"]),
    ],
)
def test_misfits_name_input_expected_and_got(shapes: Any, actual: Any, words: list[str]) -> None:
    _, problems = bound(shapes, actual)
    assert len(problems) == 1
    for word in words:
        assert word in problems[0]


def test_all_misfits_are_listed() -> None:
    _, problems = bound([[1], [2], ["N", "N"]], [(2,), (3,), (4, 5)])
    assert [problem.split(":")[0] for problem in problems] == ["input 'a'", "input 'b'", "input 'c'"]


def test_bindable_tells_what_shapes_determine() -> None:
    assert bindable([["N", ["*", 2, "M"]], [["//", "K", 2]]]) == {"N", "M"}
    assert bindable([[["*", "N", "N"]]]) == frozenset()
    assert bindable([[["*", "N", "M"]]], frozenset("M")) == {"N", "M"}
    assert symbols_of(["+", "N", ["*", "M", 2]]) == {"N", "M"}
