"""Sequences and optionals: types, references, text form, loops and branches that carry them."""

from __future__ import annotations

import numpy as np
import pytest

from dhc.compiler import compile as compile_graph
from dhc.errors import DhcError, ShapeError, TypeMismatchError, UnsupportedError
from dhc.ir import Builder, Graph, LooseTensorType, OptionalType, SequenceType, TensorType, dtype
from dhc.ir.text import parse_graph, print_graph
from dhc.ir.types import accepts, joined, loosened
from dhc.ir.verifier import verify

F32 = dtype("f32")


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def pieces_graph() -> tuple[Graph, Builder]:
    """A graph with a sequence `s` of vectors of different sizes and a position `i`."""
    graph = Graph("g")
    graph.add_input("s", SequenceType(LooseTensorType(F32, (None,))))
    graph.input("i", "i64", ())
    return graph, Builder(graph)


def run(graph: Graph, **inputs) -> list:
    verify(graph)
    text = print_graph(graph)
    parsed = parse_graph(text)
    verify(parsed)
    assert print_graph(parsed) == text
    return parsed.evaluate(**inputs)


PIECES = [vector(1, 2), vector(3), vector(4, 5, 6)]


@pytest.mark.parametrize("position", [0, 1, 2, -1, -3])
def test_elements_by_position(position):
    graph, b = pieces_graph()
    s, i = graph.inputs
    graph.output(b.sequence_at(s, i, symbols=("u",)), b.sequence_length(s), b.sequence_erase(s, i))
    taken, length, left = run(graph, s=PIECES, i=np.array(position))
    wanted = list(PIECES)
    np.testing.assert_array_equal(taken, wanted.pop(position))
    assert length == 3
    assert [x.tolist() for x in left] == [x.tolist() for x in wanted]


@pytest.mark.parametrize("position", [3, -4])
def test_positions_out_of_range(position):
    graph, b = pieces_graph()
    graph.output(b.sequence_at(*graph.inputs, symbols=("u",)))
    with pytest.raises(DhcError, match="out of range"):
        graph.evaluate(s=PIECES, i=np.array(position))


@pytest.mark.parametrize(("position", "index"), [(0, 0), (1, 1), (3, 3), (-1, 2), (-3, 0)])
def test_insertion_is_before_the_position(position, index):
    graph, b = pieces_graph()
    graph.output(b.sequence_insert(graph.inputs[0], vector(9), graph.inputs[1]))
    (found,) = run(graph, s=PIECES, i=np.array(position))
    wanted = [x.tolist() for x in PIECES]
    wanted.insert(index, [9.0])
    assert [x.tolist() for x in found] == wanted


def test_insertion_widens_the_element_type():
    graph = Graph("g")
    b = Builder(graph)
    empty = b.sequence_empty(dtype="f32")
    assert str(empty.type) == "seq<f32[-]>"
    one = b.sequence_insert(empty, vector(1, 2))
    assert str(one.type) == "seq<f32[2]>"
    two = b.sequence_insert(one, vector(3))
    assert str(two.type) == "seq<f32[?]>"
    three = b.sequence_insert(two, np.ones((1, 1), np.float32))
    assert str(three.type) == "seq<f32[*]>"
    with pytest.raises(ShapeError, match="ranks differ"):
        b.sequence_at(three, 0)
    with pytest.raises(TypeMismatchError, match="one sequence"):
        b.sequence_insert(one, np.array([1]))
    graph.output(empty, three)
    found = run(graph)
    assert found[0] == [] and len(found[1]) == 3


@pytest.mark.parametrize("new_axis", [False, True])
def test_concatenation(new_axis):
    graph = Graph("g")
    s = graph.add_input("s", SequenceType(TensorType(F32, (2, 3))))
    joined_value = Builder(graph).concat_from_sequence(s, axis=-1, new_axis=new_axis, symbols=("u",))
    graph.output(joined_value)
    parts = [np.full((2, 3), k, np.float32) for k in range(4)]
    (found,) = run(graph, s=parts)
    np.testing.assert_array_equal(found, np.stack(parts, -1) if new_axis else np.concatenate(parts, -1))


@pytest.mark.parametrize("sizes", [np.array(2), np.array([1, 0, 4])])
def test_split_by_sizes_that_are_data(sizes):
    graph = Graph("g")
    x = graph.input("x", "f32", (3, 5))
    n = graph.input("n", "i64", sizes.shape)
    graph.output(Builder(graph).split_to_sequence(x, n, axis=1))
    array = np.arange(15, dtype=np.float32).reshape(3, 5)
    (found,) = run(graph, x=array, n=sizes)
    cuts = np.cumsum(sizes)[:-1] if sizes.ndim else [2, 4]
    for a, b in zip(found, np.split(array, cuts, axis=1), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sizes", [np.array(0), np.array([1, 1]), np.array([7, -2])])
def test_split_refuses_sizes_that_do_not_fit(sizes):
    graph = Graph("g")
    x, n = graph.input("x", "f32", (5,)), graph.input("n", "i64", sizes.shape)
    graph.output(Builder(graph).split_to_sequence(x, n))
    with pytest.raises(DhcError, match="pieces of size"):
        graph.evaluate(x=vector(1, 2, 3, 4, 5), n=sizes)


def test_optionals():
    graph = Graph("g")
    o = graph.add_input("o", OptionalType(LooseTensorType(F32, (None,))))
    b = Builder(graph)
    graph.output(b.optional_has_element(o), b.optional_empty(type=TensorType(F32, (2,))), b.optional(vector(1)))
    has, nothing, one = run(graph, o=None)
    assert not has and nothing is None and one.tolist() == [1]
    assert run(graph, o=vector(7))[0]
    with pytest.raises(TypeMismatchError):
        graph.evaluate(o=np.array([1]))


def test_an_optional_without_value_has_no_element():
    graph = Graph("g")
    o = graph.add_input("o", OptionalType(LooseTensorType(F32, (None,))))
    graph.output(Builder(graph).optional_get_element(o, symbols=("u",)))
    assert run(graph, o=vector(1, 2))[0].tolist() == [1, 2]
    with pytest.raises(DhcError, match="holds nothing"):
        graph.evaluate(o=None)


def test_inputs_are_checked():
    graph, b = pieces_graph()
    graph.output(b.sequence_length(graph.inputs[0]))
    for wrong in (vector(1), [np.array([1])], [vector(1), None]):
        with pytest.raises(TypeMismatchError, match=r"'s'"):
            graph.evaluate(s=wrong, i=np.array(0))
    with pytest.raises(ShapeError):
        graph.evaluate(s=[np.ones((1, 1), np.float32)], i=np.array(0))


def test_the_cpu_names_them_as_a_limitation():
    graph, b = pieces_graph()
    graph.output(b.sequence_length(graph.inputs[0]))
    with pytest.raises(UnsupportedError, match="interpreter only"):
        compile_graph(graph, targets=["cpu"])


# ---- types -----------------------------------------------------------------------------------------------------------

NOTHING = LooseTensorType(F32, nothing=True)
ANY_RANK = LooseTensorType(F32)
FIXED = TensorType(F32, (2, 3))
OPEN = LooseTensorType(F32, (None, 3))


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        (NOTHING, FIXED, FIXED),
        (FIXED, TensorType(F32, (4, 3)), OPEN),
        (OPEN, FIXED, OPEN),
        (FIXED, TensorType(F32, (2,)), ANY_RANK),
        (ANY_RANK, NOTHING, ANY_RANK),
        (FIXED, TensorType(dtype("f64"), (2, 3)), None),
        (SequenceType(NOTHING), SequenceType(FIXED), SequenceType(FIXED)),
        (OptionalType(FIXED), FIXED, OptionalType(FIXED)),
        (SequenceType(FIXED), FIXED, None),
        (OptionalType(SequenceType(NOTHING)), SequenceType(OPEN), OptionalType(SequenceType(OPEN))),
    ],
)
def test_joined_types(a, b, wanted):
    assert joined(a, b) == wanted == joined(b, a)
    if wanted is not None:
        assert accepts(wanted, a) and accepts(wanted, b)
        assert accepts(a, wanted) == (loosened(a) == wanted)
