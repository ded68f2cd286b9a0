"""ONNX's own test cases as a judge: ``python -m dhc.frontend.onnx.conformance``.

Runs the cases that ship in the onnx package, compares values (rtol 1e-3, atol 1e-5), shapes and element types
strictly, and prints passed, failed and limited (refused with a reason) per operator.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SUITES = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
RTOL, ATOL = 1e-3, 1e-5


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        name: of the case.
        operators: operators of its graph.
        status: ``passed``, ``failed`` or ``limited``.
        reason: why not, empty when passed.
        how: ``compiled``, ``opaque`` (a kernel written as a loop in Python, compiled by Numba) or ``interpreted``.
        seconds: time taken.
    """

    name: str
    operators: tuple[str, ...]
    status: str
    reason: str
    how: str
    seconds: float


def load_cases(suite: str) -> list[Any]:
    """The cases of a suite, sorted by name.

    Raises:
        ValueError: an unknown suite.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if suite == "node":
            from onnx.backend.test.case.node import collect_testcases

            cases = list(collect_testcases(None))
        elif suite == "light":
            cases = _light_cases()
        else:
            from onnx.backend.test.loader import load_model_tests

            if suite not in SUITES:
                raise ValueError(f"there is no suite {suite!r}")
            cases = list(load_model_tests(kind=suite))
    return sorted(cases, key=lambda case: case.name)


def _light_cases() -> list[Any]:
    """Whole networks; the package stores their outputs, its runner makes the inputs: rising numbers in [0, 1)."""
    import onnx
    from onnx.backend.test.case.test_case import TestCase

    cases = []
    for path in sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("light_*.onnx")):
        model = onnx.load(path)
        output = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
        given = {t.name for t in model.graph.initializer}
        shapes = [[d.dim_value or 1 for d in v.type.tensor_type.shape.dim]
                  for v in model.graph.input if v.name not in given]  # fmt: skip
        inputs = [(np.arange(np.prod(s)).reshape(s) / np.prod(s)).astype(np.float32) for s in shapes]
        cases.append(
            TestCase(
                name=f"test_{path.stem}", model_name=path.stem, url=None, model_dir=None, model=model,
                data_sets=[(inputs, [output])], kind="light", rtol=RTOL, atol=ATOL,
            )
        )  # fmt: skip
    return cases


def as_array(value: Any) -> Any:
    """An input or output of a case: arrays, lists for sequences, None for an empty optional."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [as_array(v) for v in value]
    if hasattr(value, "data_type"):
        from dhc.frontend.onnx.tensors import to_array

        return to_array(value)
    return np.asarray(value)


def _read_data(path: str, type_proto: Any) -> Any:
    """A data file of a model test, by the type of the graph's value."""
    from onnx import OptionalProto, SequenceProto, TensorProto, numpy_helper

    data = Path(path).read_bytes()
    kind = type_proto.WhichOneof("value")
    if kind == "sequence_type":
        sequence = SequenceProto()
        sequence.ParseFromString(data)
        return as_array(numpy_helper.to_list(sequence))
    if kind == "optional_type":
        optional = OptionalProto()
        optional.ParseFromString(data)
        return as_array(numpy_helper.to_optional(optional))
    tensor = TensorProto()
    tensor.ParseFromString(data)
    return as_array(tensor)


def data_sets(case: Any, model: Any) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs and expected outputs of a case."""
    if case.data_sets:
        for inputs, outputs in case.data_sets:
            yield [as_array(x) for x in inputs], [as_array(x) for x in outputs]
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        inputs = [
            _read_data(str(folder / f"input_{i}.pb"), v.type)
            for i, v in enumerate(model.graph.input)
            if (folder / f"input_{i}.pb").exists()
        ]
        outputs = [_read_data(str(folder / f"output_{i}.pb"), v.type) for i, v in enumerate(model.graph.output)]
        yield inputs, outputs


def difference(found: Any, wanted: Any, rtol: float, atol: float) -> str:
    """Why a result differs; empty when it does not."""
    if wanted is None or isinstance(wanted, list):
        if not isinstance(found, type(wanted)) or (wanted is not None and len(found) != len(wanted)):
            return f"{type(found).__name__} where {type(wanted).__name__} is expected"
        inner = (difference(f, w, rtol, atol) for f, w in zip(found or (), wanted or ()))
        return next((d for d in inner if d), "")
    found = np.asarray(found)
    if found.shape != wanted.shape:
        return f"shape {found.shape} where {wanted.shape} is expected"
    if wanted.dtype.kind in "OUS":
        return "" if found.astype(str).tolist() == wanted.astype(str).tolist() else "other strings"
    if found.dtype != wanted.dtype:
        return f"{found.dtype} where {wanted.dtype} is expected"
    wide = np.complex128 if wanted.dtype.kind == "c" else np.float64
    a, b = found.astype(wide), wanted.astype(wide)
    if np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
        return ""
    with np.errstate(all="ignore"):
        return f"values differ by up to {np.nanmax(np.abs(a - b)):.3g}"


def run_case(case: Any, device: str) -> Outcome:
    """Runs one case on a device."""
    import onnx

    from dhc_runtime.errors import DhcError, UnsupportedError

    from dhc.frontend.onnx.backend import DhcBackend

    start = time.perf_counter()
    model = case.model if case.model is not None else onnx.load(os.path.join(case.model_dir, "model.onnx"))
    operators = tuple(sorted({n.op_type for n in model.graph.node}))
    status, reason, how = "passed", "", "interpreted"
    rtol, atol = max(case.rtol or 0, RTOL), max(case.atol or 0, ATOL)
    try:
        prepared = DhcBackend.prepare(model, device)
        for inputs, outputs in data_sets(case, model):
            found = prepared.run(inputs)
            if prepared.compiled is not None:
                how = code_of(prepared.compiled)
            if len(found) != len(outputs):
                reason = f"{len(found)} outputs where {len(outputs)} are expected"
            for f, w in zip(found, outputs):
                reason = reason or difference(f, w, rtol, atol)
        status = "failed" if reason else "passed"
    except UnsupportedError as error:
        status, reason = "limited", str(error.problems[0]) if error.problems else str(error)
    except DhcError as error:
        status, reason = "failed", str(error)
    except Exception as error:  # a judge must survive whatever a case does
        status, reason = "failed", f"{type(error).__name__}: {error}"
    return Outcome(case.name, operators, status, reason, how, time.perf_counter() - start)


def code_of(graph: Any) -> str:
    """``opaque`` when one of the kernels of a compiled graph is written as a loop in Python, else ``compiled``."""
    from dhc.ir.kinds import Opaque

    return "opaque" if any(isinstance(node.op.kind, Opaque) for node in graph.walk()) else "compiled"


_CASES: list[Any] = []


def _run_number(job: tuple[int, str]) -> Outcome:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return run_case(_CASES[job[0]], job[1])


def run_suite(suite: str, device: str = "CPU", jobs: int = 1, only: str = "", progress: bool = False) -> list[Outcome]:
    """Runs a suite.

    Args:
        suite: one of SUITES.
        device: ``CPU`` or ``REFERENCE``.
        jobs: processes.
        only: run cases whose name contains this.
        progress: show a bar on standard error.
    """
    _CASES[:] = [case for case in load_cases(suite) if only in case.name]
    numbers = [(i, device) for i in range(len(_CASES))]
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        advance = _bar(stack, suite, len(numbers)) if progress else (lambda: None)
        if jobs > 1 and len(numbers) > jobs:
            # Forked after the cases are loaded, so that they are made once.
            pool = stack.enter_context(multiprocessing.get_context("fork").Pool(jobs))
            results: Iterator[Outcome] = pool.imap(_run_number, numbers, chunksize=8)
        else:
            results = map(_run_number, numbers)
        for outcome in results:
            outcomes.append(outcome)
            advance()
    return outcomes


def _bar(stack: contextlib.ExitStack, suite: str, total: int) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(f"{suite} cases", total=total)
    return lambda: bar.advance(task)


def summary(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Counts by status, and of the passed ones by how they ran."""
    counts = {status: sum(o.status == status for o in outcomes) for status in ("passed", "failed", "limited")}
    for how in ("compiled", "opaque", "interpreted"):
        counts[how] = sum(o.status == "passed" and o.how == how for o in outcomes)
    return counts


def print_report(outcomes: Sequence[Outcome], suite: str, device: str, seconds: float) -> None:
    """A row per operator, those with anything but passes last, then the totals."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    rows: dict[str, dict[str, int]] = {}
    for o in outcomes:
        for operator in o.operators:
            row = rows.setdefault(operator, {"passed": 0, "failed": 0, "limited": 0})
            row[o.status] += 1
    table = Table("operator", "passed", "failed", "limited", "reason", box=None)
    for operator, row in sorted(rows.items(), key=lambda item: (item[1]["failed"] + item[1]["limited"] > 0, item[0])):
        reason = next((o.reason for o in outcomes if operator in o.operators and o.reason), "")
        table.add_row(operator, *(str(row[k]) for k in ("passed", "failed", "limited")), reason.split("\n")[0][:110])
    console.print(table)
    counts = summary(outcomes)
    console.print(
        f"{suite} on {device}: {counts['passed']} passed, {counts['failed']} failed, {counts['limited']} limited "
        f"of {len(outcomes)} in {seconds:.0f} s; of the passed {counts['compiled']} compiled, "
        f"{counts['opaque']} with opaque kernels, {counts['interpreted']} interpreted"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when no case failed (limited ones are reasons, not failures)."""
    parser = argparse.ArgumentParser(prog="python -m dhc.frontend.onnx.conformance", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "reference"])
    parser.add_argument("--suite", default="node", choices=SUITES)
    parser.add_argument("--only", default="", help="run cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    parser.add_argument("--list", action="store_true", help="print the names of the cases that pass")
    chosen = parser.parse_args(arguments)
    start = time.perf_counter()
    outcomes = run_suite(chosen.suite, chosen.device.upper(), chosen.jobs, chosen.only, sys.stderr.isatty())
    seconds = time.perf_counter() - start
    if chosen.list:
        print("\n".join(o.name for o in outcomes if o.status == "passed"))
    else:
        print_report(outcomes, chosen.suite, chosen.device, seconds)
    if chosen.json is not None:
        from dhc_runtime.safe_write import write_bytes

        content = {
            "suite": chosen.suite,
            "device": chosen.device,
            "seconds": round(seconds, 1),
            "summary": summary(outcomes),
            "cases": [asdict(o) for o in outcomes],
        }
        write_bytes(chosen.json, json.dumps(content, indent=1).encode())
    return 1 if summary(outcomes)["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
