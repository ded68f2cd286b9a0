"""What a pass is: a frozen dataclass whose fields are its options, from graph to graph, with statistics.

A pass edits the graph in place and says whether it changed anything. `run_passes` runs several, optionally verifying
after each. Passes are found by name; third parties add theirs with `register_pass` or through the entry point group
``dhc.passes``.
"""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, TypeVar, get_type_hints

from dhc_runtime.errors import DhcError, UsageError

from dhc.ir.graph import Graph, Node

ENTRY_POINT_GROUP = "dhc.passes"


@dataclass(frozen=True)
class Refusal:
    """A rewrite that almost applied: the node and the reason why it did not.

    Attributes:
        rule: name of the rule or pass.
        where: location of the node in the user's model.
        reason: one sentence.
    """

    rule: str
    where: str
    reason: str

    @classmethod
    def at(cls, rule: str, node: Node, reason: str) -> Refusal:
        """A refusal about a node."""
        return cls(rule, str(node.location), reason)


@dataclass
class PassResult:
    """What a pass did.

    Attributes:
        modified: True when the graph changed.
        statistics: counts of what was done, for reports.
        refusals: rewrites that did not apply, with reasons.
    """

    modified: bool = False
    statistics: dict[str, int] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def count(self, what: str, n: int = 1) -> None:
        """Adds to a statistic and notes the change."""
        if n:
            self.statistics[what] = self.statistics.get(what, 0) + n
            self.modified = True


@dataclass(frozen=True)
class Pass:
    """Base of passes. Subclasses are frozen dataclasses with a `name`, options as fields, and `run`."""

    name: ClassVar[str] = ""

    def run(self, graph: Graph) -> PassResult:
        """Transforms the graph in place."""
        raise TypeError(f"pass {type(self).__name__} does not define run")

    def __str__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        ]
        return self.name + (f"{{{','.join(changed)}}}" if changed else "")


_PASSES: dict[str, type[Pass]] = {}
_LOADED: set[str] = set()  # entry points that were tried: a module registers its passes once
_BUILTIN = ("canonicalize", "cse", "dce", "decompose", "fold", "fold_batch_norm", "fuse", "memory", "sink")

PassType = TypeVar("PassType", bound=type[Pass])


def register_pass(cls: PassType) -> PassType:
    """Class decorator: makes a pass available by name.

    Raises:
        ValueError: the name is empty or taken.
    """
    if not cls.name or cls.name in _PASSES:
        raise ValueError(f"pass name {cls.name!r} is empty or taken")
    _PASSES[cls.name] = cls
    return cls


def pass_names() -> list[str]:
    """Names of all passes, sorted."""
    _load()
    return sorted(_PASSES)


def _load() -> None:
    from importlib.metadata import entry_points

    for name in _BUILTIN:
        import_module(f"dhc.passes.{name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in _PASSES or entry.value in _LOADED:
            continue
        _LOADED.add(entry.value)
        try:
            entry.load()
        except Exception as error:  # whatever an installed package does wrong, the user learns which one it is
            source = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
            raise UsageError(
                f"the pass {entry.name!r} of the installed package {source} cannot be loaded: {error}",
                hint="update or remove that package",
            ) from error


def find_pass(name: str) -> type[Pass]:
    """The pass class of a name.

    Raises:
        UsageError: there is none; the message suggests close names.
    """
    if name not in _PASSES:
        _load()
    if name not in _PASSES:
        from dhc.passes.pipelines import PIPELINES

        close = difflib.get_close_matches(name, [*_PASSES, *PIPELINES], 2)
        raise UsageError(
            f"there is no pass {name!r}; passes are {', '.join(sorted(_PASSES))}; pipelines are {', '.join(PIPELINES)}",
            hint=f"did you mean {' or '.join(close)}?" if close else None,
        )
    return _PASSES[name]


def parse_passes(text: str) -> list[Pass]:
    """Reads ``fold,fuse{max_nodes=8}``: passes with options, separated by commas.

    The name of a pipeline (``standard``, ``clean``) stands for its passes. A pass of that name would come first.

    Raises:
        UsageError: unknown pass or option, or a value of the wrong type.
    """
    passes: list[Pass] = []
    for entry in _split(text):
        name, _, options = entry.partition("{")
        pipeline = _pipeline(name.strip())
        if pipeline is not None and not options:
            passes.extend(pipeline)
            continue
        cls = find_pass(name.strip())
        if options and not options.endswith("}"):
            raise UsageError(f"options of pass {name!r} are not closed", hint="write name{option=value,...}")
        passes.append(cls(**_options(cls, options[:-1])))
    return passes


def _pipeline(name: str) -> list[Pass] | None:
    """The passes of a named pipeline."""
    from dhc.passes.pipelines import PIPELINES

    make = PIPELINES.get(name)
    return None if make is None or name in _PASSES else make()


def _split(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [p.strip() for p in [*parts, current] if p.strip()]


def _options(cls: type[Pass], text: str) -> dict[str, Any]:
    hints = get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, _, value = part.partition("=")
        if key not in fields:
            raise UsageError(f"pass {cls.name!r} has no option {key!r}; it has {', '.join(sorted(fields)) or 'none'}")
        values[key] = _convert(cls.name, key, value, hints[key])
    return values


def _convert(name: str, key: str, value: str, hint: Any) -> Any:
    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
        if hint in (int, float, str):
            return hint(value)
    except (KeyError, ValueError):
        raise UsageError(f"option {key!r} of pass {name!r} cannot be {value!r}") from None
    raise UsageError(f"option {key!r} of pass {name!r} cannot be given as text")


@dataclass(frozen=True)
class PassRecord:
    """One executed pass with its result and duration in seconds."""

    pass_: Pass
    result: PassResult
    seconds: float


def run_passes(
    graph: Graph,
    passes: Iterable[Pass],
    *,
    verify: bool = False,
    after: Callable[[Pass, Graph], None] | None = None,
) -> list[PassRecord]:
    """Runs passes in order.

    Args:
        graph: edited in place.
        passes: the passes.
        verify: check the graph before the first and after each pass.
        after: called after each pass (printing, journals).

    Raises:
        VerifyError: a pass left the graph malformed; the message names it and the passes before it.
    """
    records: list[PassRecord] = []
    if verify:
        _verify(graph, "before the first pass")
    for pass_ in passes:
        start = time.perf_counter()
        result = pass_.run(graph)
        records.append(PassRecord(pass_, result, time.perf_counter() - start))
        if verify:
            done = ", ".join(str(r.pass_) for r in records)
            _verify(graph, f"after {pass_} (passes run: {done})")
        if after is not None:
            after(pass_, graph)
    return records


def _verify(graph: Graph, when: str) -> None:
    from dhc.ir.verifier import verify

    try:
        verify(graph)
    except DhcError as error:
        raise type(error)(f"the graph is malformed {when}: {error}") from error


def refusals(records: Sequence[PassRecord]) -> list[Refusal]:
    """All refusals of a run, in order."""
    return [r for record in records for r in record.result.refusals]
