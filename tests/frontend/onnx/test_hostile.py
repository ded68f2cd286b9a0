"""Hostile models: an error of one paragraph, little memory, never a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dhc.errors import DhcError
from dhc.frontend.onnx import load_onnx
from dhc.ir.symbols import free_symbols, substitute
from tests.frontend.onnx.hostile_models import (
    ANY,
    CASES,
    RESOURCE,
    _external,
    branch_network,
    shape_network,
    small_network,
    write_cases,
)

MEMORY_LIMIT = 200 * 2**20

# One process opens all files, so that peaks show as growth of its high-water mark. Nothing of dhc's tests is
# imported there: what counts is a user's process.
CHILD = """
import json, resource, sys
import numpy as np
import dhc, onnx
import dhc.errors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def attempt(path):
    graph = dhc.load_onnx(path)
    inputs = {v.name: np.ones([2 if not isinstance(d, int) else d for d in v.shape], v.dtype.numpy)
              for v in graph.inputs}
    return "result", len(graph.evaluate(**inputs))

paths = json.load(sys.stdin)
warm = paths.pop("warm")
dhc.load_onnx(warm).evaluate(np.ones((2, 1, 4, 4), np.float32))
records = {}
for name, path in paths.items():
    before = peak()
    try:
        kind, text = attempt(path)
        mro = []
    except dhc.errors.DhcError as error:
        kind, text, mro = type(error).__name__, str(error), [c.__name__ for c in type(error).__mro__]
    records[name] = {"kind": kind, "text": text, "mro": mro, "grown": peak() - before}
    print(json.dumps({name: records[name]}), flush=True)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    paths = {name: str(path) for name, path in write_cases(folder).items()}
    warm = folder / "warm.onnx"
    warm.write_bytes(small_network().SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps({"warm": str(warm), **paths}), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        found.update(json.loads(line))
    found["(process)"] = {"returncode": done.returncode, "stderr": done.stderr[-2000:]}
    return found


def test_the_process_survives_all_of_them(records: dict[str, Any]) -> None:
    assert records["(process)"]["returncode"] == 0, records["(process)"]["stderr"]
    assert len(records) == len(CASES) + 1


@pytest.mark.parametrize("name", list(CASES))
def test_hostile_model(records: dict[str, Any], name: str) -> None:
    assert name in records, f"the process died before or at this case: {records['(process)']}"
    record = records[name]
    expected = CASES[name][0]
    assert record["kind"] == expected or expected in record["mro"], record
    assert record["text"]
    paragraph = record["text"].split("\n  - ")[0]
    assert "\n" not in paragraph, "the message is more than one paragraph"
    assert len(paragraph) < 1000
    assert record["grown"] <= MEMORY_LIMIT


def test_compiled_code_refuses_huge_results_too(records: dict[str, Any], tmp_path: Path) -> None:
    import dhc
    from dhc.errors import ResourceError

    name = "ConstantOfShape of 2**36"
    made = CASES[name][1]()
    assert not isinstance(made, bytes)
    data = made.SerializeToString()
    assert len(data) < 100
    graph = load_onnx(data)
    with pytest.raises(ResourceError):
        dhc.compile(graph).session().run({})


def test_external_data_in_the_folder_is_read(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32)
    (tmp_path / "good.bin").write_bytes(values.tobytes())
    path = tmp_path / "model.onnx"
    path.write_bytes(_external(location="good.bin", offset="16", length="16").SerializeToString())
    (result,) = load_onnx(path).evaluate(np.zeros(4, np.float32))
    np.testing.assert_array_equal(result, values[4:])


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    from onnx import helper

    from dhc.errors import UnsupportedError
    from tests.frontend.onnx.hostile_models import model, relu

    nodes = [
        helper.make_node("Reluu", ["x"], ["a"], name="first"),
        helper.make_node("NoSuchOperator", ["a"], ["b"], name="second"),
        helper.make_node("Fancy", ["b"], ["c"], name="third", domain="com.example"),
        relu("c", "y"),
    ]
    with pytest.raises(UnsupportedError) as caught:
        load_onnx(model(nodes).SerializeToString())
    assert len(caught.value.problems) == 3
    text = str(caught.value)
    for part in ("first", "second", "third", "is Relu meant?", "imports no opset of the domain"):
        assert part in text


ORIGINALS = [small_network().SerializeToString(), shape_network().SerializeToString(),
             branch_network().SerializeToString()]  # fmt: skip


@settings(max_examples=300)
@given(
    which=st.integers(0, len(ORIGINALS) - 1),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_mutated_models_give_an_error_or_a_result(which: int, edits: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(ORIGINALS[which])
    for position, value in edits:
        data[position % len(data)] = value
    if cut is not None:
        del data[cut % len(data) :]
    try:
        graph = load_onnx(bytes(data))
        sizes = {s: 2 for v in graph.inputs for d in v.shape for s in free_symbols(d)}
        shapes = [tuple(substitute(d, sizes) for d in v.shape) for v in graph.inputs]
        if all(isinstance(d, int) and d <= 64 for shape in shapes for d in shape):
            graph.evaluate(*(np.ones(s, v.dtype.numpy) for s, v in zip(shapes, graph.inputs)))
    except DhcError as error:
        assert str(error)  # any error of the family will do, but it says something


@pytest.mark.parametrize("data", ORIGINALS)
def test_the_originals_of_the_mutants_run(data: bytes) -> None:
    graph = load_onnx(data)
    inputs = [np.ones([d if isinstance(d, int) else 2 for d in v.shape], v.dtype.numpy) for v in graph.inputs]
    assert all(np.isfinite(r).all() for r in graph.evaluate(*inputs))


def test_kinds_of_cases_are_real_errors() -> None:
    import dhc.errors

    assert {kind for kind, _ in CASES.values()} <= set(vars(dhc.errors))
    assert {RESOURCE, ANY} <= {kind for kind, _ in CASES.values()}
