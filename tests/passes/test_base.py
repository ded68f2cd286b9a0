"""Passes by name, with options, in pipelines, from other packages; what running them reports."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from dhc.errors import UsageError, VerifyError
from dhc.ir import Builder, Graph
from dhc.passes import Pass, PassResult, find_pass, parse_passes, pass_names, register_pass, run_passes
from dhc.passes.fuse import Fuse
from dhc.passes.pipelines import PIPELINES, standard_pipeline


def small() -> Graph:
    graph = Graph()
    b = Builder(graph)
    x = graph.input("x", "f32", (2,))
    graph.output(b.relu(b.relu(x)), names=["y"])
    b.exp(x)
    return graph


def test_names_and_options():
    assert parse_passes("fuse{max_nodes=8, contractions=false},dce") == [
        Fuse(max_nodes=8, contractions=False),
        find_pass("dce")(),
    ]
    assert [str(p) for p in parse_passes(" fuse{max_nodes=8},decompose{keep=softmax+lrn} ,, cse")] == [
        "fuse{max_nodes=8}",
        "decompose{keep=softmax+lrn}",
        "cse",
    ]


@pytest.mark.parametrize("name", pass_names())
def test_what_a_pass_prints_parses_to_it(name):
    pass_ = find_pass(name)()
    assert parse_passes(str(pass_)) == [pass_]


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_pipelines_have_names(name):
    assert parse_passes(f"{name},dce") == [*PIPELINES[name](), find_pass("dce")()]


def test_the_reference_target_takes_graphs_as_they_are():
    assert standard_pipeline("reference") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuze", "did you mean fuse"),
        ("standart", "did you mean standard"),
        ("fuse{nodes=1}", "has no option 'nodes'; it has contractions, max_nodes"),
        ("dce{x=1}", "it has none"),
        ("fuse{max_nodes=many}", "cannot be 'many'"),
        ("fuse{contractions=perhaps}", "cannot be 'perhaps'"),
        ("fuse{max_nodes=1", "not closed"),
        ("standard{x=1}", "there is no pass 'standard'"),
    ],
)
def test_mistakes_are_explained(text, message):
    with pytest.raises(UsageError) as caught:
        parse_passes(text)
    assert message in str(caught.value)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="taken"):
        register_pass(type("Again", (Pass,), {"name": "cse"}))
    with pytest.raises(ValueError, match="empty"):
        register_pass(type("Nameless", (Pass,), {}))


def test_records_tell_what_happened():
    graph, seen = small(), []
    records = run_passes(
        graph, parse_passes("canonicalize,dce,cse"), verify=True, after=lambda p, g: seen.append((str(p), len(g)))
    )
    assert seen == [("canonicalize", 2), ("dce", 1), ("cse", 1)]
    assert [r.result.statistics for r in records] == [{"idempotent": 1}, {"removed": 1}, {}]
    assert [r.result.modified for r in records] == [True, True, False]
    assert all(r.seconds >= 0 for r in records)


@dataclass(frozen=True)
class Breaks(Pass):
    """Puts the only node's operand out of order."""

    name: ClassVar[str] = "breaks"

    def run(self, graph: Graph) -> PassResult:
        first = next(iter(graph))
        graph.move_before(first, None)
        return PassResult(modified=True)


def test_verify_names_the_pass_that_broke_the_graph():
    with pytest.raises(VerifyError, match=r"(?s)after breaks \(passes run: cse, breaks\).*defined later"):
        run_passes(small(), [find_pass("cse")(), Breaks()], verify=True)
    broken = small()
    Breaks().run(broken)
    with pytest.raises(VerifyError, match="before the first pass"):
        run_passes(broken, [], verify=True)
    with pytest.raises(TypeError, match="does not define run"):
        Pass().run(broken)


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from dhc.passes import Pass, PassResult, register_pass

@register_pass
@dataclass(frozen=True)
class Shout(Pass):
    \"\"\"Does nothing, loudly.\"\"\"
    name: ClassVar[str] = "shout"
    volume: float = 1.0

    def run(self, graph):
        return PassResult()
"""


def _installed(folder: Path, module: str, text: str) -> dict[str, str]:
    """An environment in which a package with one pass is installed."""
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    info = folder / f"{module}-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 2.5\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[dhc.passes]\nshout = {module}\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}


def _python(code: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=folder)


def test_a_pass_of_an_installed_package_is_found(tmp_path: Path, repository: Path):
    environment = _installed(tmp_path, "shouting", PLUGIN)
    environment["PYTHONPATH"] += os.pathsep + os.pathsep.join([str(repository), str(repository / "runtime")])
    code = "from dhc.passes import *; print(parse_passes('shout{volume=2.5}'), 'shout' in pass_names())"
    done = _python(code, environment, tmp_path)
    assert done.stdout.strip() == "[Shout(volume=2.5)] True", done.stderr


def test_a_broken_package_is_named(tmp_path: Path, repository: Path):
    environment = _installed(tmp_path, "shouting", "import nothing_of_that_name")
    environment["PYTHONPATH"] += os.pathsep + os.pathsep.join([str(repository), str(repository / "runtime")])
    done = _python("from dhc.passes import *; parse_passes('shout')", environment, tmp_path)
    assert "UsageError: the pass 'shout' of the installed package shouting 2.5 cannot be loaded" in done.stderr
