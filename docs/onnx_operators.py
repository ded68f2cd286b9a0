"""The table of ONNX operators on the support page: what the handlers, ONNX's schemas and the backends say today."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dhc.errors import DhcError

FIRST_OPSET = 7
"""Versions that no later opset uses are left out."""

CASES = 4
"""So many cases of an operator and an element type are asked about."""

PROBES = 8
"""So many cases of an operator are tried with an element type for which it has none."""

Key = tuple[str, str]
"""Domain and operator."""


class Answer(NamedTuple):
    """What becomes of a case of an operator.

    Attributes:
        dtype: element type of its first operand.
        how: ``compiled``, ``opaque``, ``interpreted`` or ``refused`` when it is imported.
        reason: why the target cannot take it; empty when it can.
    """

    dtype: str
    how: str
    reason: str


def versions() -> dict[Key, list[tuple[int, str]]]:
    """Every version of every operator that an opset from FIRST_OPSET on may mean, and how it is imported."""
    from onnx import defs

    from dhc.frontend.onnx.functions import has_schema_function
    from dhc.frontend.onnx.handlers import find_handler

    history: dict[Key, dict[int, bool]] = defaultdict(dict)
    for schema in defs.get_all_schemas_with_history():
        history[(schema.domain or "ai.onnx", schema.name)][schema.since_version] = schema.deprecated
    found: dict[Key, list[tuple[int, str]]] = {}
    for (domain, name), since in sorted(history.items()):
        ordered = sorted(since)
        rows = []
        for version, following in zip(ordered, [*ordered[1:], None]):
            if since[version] or domain == "ai.onnx" and following is not None and following <= FIRST_OPSET:
                continue
            if find_handler(domain, name, version) is not None:
                rows.append((version, "handler"))
            elif has_schema_function(domain, name, version):
                rows.append((version, "function"))
            else:
                rows.append((version, ""))
        if rows:
            found[(domain, name)] = rows
    return found


def answers(target: str = "cpu") -> dict[Key, list[Answer]]:
    """What a target says of every operator that has single-node cases, for every element type that ONNX allows."""
    found: dict[Key, list[Answer]] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for key, cases in _single_cases().items():
            asked: dict[str, int] = Counter()
            listed: list[Answer] = []
            for case in cases:
                own = _first_type(case.model.graph)
                if own is not None and asked[own] < CASES:
                    asked[own] += 1
                    listed.append(_answer(case, case.model, own, target))
            listed.extend(filter(None, (_probed(cases, d, target) for d in _allowed(cases[0]) if not asked[d])))
            found[key] = listed
    return found


def _single_cases() -> dict[Key, list[Any]]:
    """ONNX's node cases whose model is one node, by operator."""
    from dhc.frontend.onnx.conformance import load_cases

    found: dict[Key, list[Any]] = defaultdict(list)
    for case in load_cases("node"):
        nodes = case.model.graph.node
        if len(nodes) == 1:
            found[(nodes[0].domain or "ai.onnx", nodes[0].op_type)].append(case)
    return found


def _answer(case: Any, model: Any, dtype: str, target: str) -> Answer:
    """What a target says of a case; nothing is compiled."""
    from dhc.compiler import require_support, unsupported_nodes
    from dhc.errors import UnsupportedError
    from dhc.frontend.onnx.backend import DhcBackend, shapes_in, specialised
    from dhc.frontend.onnx.conformance import code_of, data_sets
    from dhc.passes.base import run_passes
    from dhc.passes.pipelines import standard_pipeline

    inputs, _ = next(data_sets(case, case.model))
    prepared = DhcBackend.prepare(model, "REFERENCE")
    given = dict(zip(prepared.names, inputs))
    shapes = {name: shapes_in(given[name]) for name in prepared.containers}
    graphs: list[Any] = []
    refused: list[str] = []

    def finish(graph: Any) -> str:
        graphs[:] = [graph]
        working = graph.clone()
        run_passes(working, standard_pipeline(target))
        refused[:] = [reason for _, reason in unsupported_nodes(working, target)]
        require_support(working, target)
        return code_of(working)

    try:
        return Answer(dtype, specialised(model.SerializeToString(), given, shapes, {}, finish)[1], "")
    except UnsupportedError as error:
        if not graphs:
            raise
        return Answer(dtype, "interpreted", refused[0] if refused else error.message)


def _probed(cases: Sequence[Any], dtype: str, target: str) -> Answer | None:
    """What a target says of an element type for which there is no case, asked with those of other types.

    None when none of them is valid with this type.
    """
    from dhc.errors import TypeMismatchError, UnsupportedError

    refusal = None
    for case in cases[:PROBES]:
        for every in (False, True):
            try:
                found = _answer(case, _retyped(case, dtype, every), dtype, target)
            except (TypeMismatchError, UnsupportedError) as error:
                refusal = refusal or Answer(dtype, "refused", error.message)
            except DhcError:
                continue  # attributes or other operands do not fit this type
            else:
                return found
    return refusal


def _first_type(graph: Any) -> str | None:
    """Element type of the first input, or of the first output when there is none."""
    from dhc.frontend.onnx.tensors import from_onnx_dtype

    type_ = [*graph.input, *graph.output][0].type
    while type_.WhichOneof("value") in ("sequence_type", "optional_type"):
        type_ = getattr(type_, type_.WhichOneof("value")).elem_type
    return str(from_onnx_dtype(type_.tensor_type.elem_type, "case"))


def _schema(case: Any) -> Any:
    from onnx import defs

    (node,) = case.model.graph.node
    opsets = {entry.domain: entry.version for entry in case.model.opset_import}
    return defs.get_schema(node.op_type, opsets[node.domain], node.domain)


def _allowed(case: Any) -> list[str]:
    """Element types that the first operand may have; none when it is no tensor."""
    from onnx import TensorProto

    from dhc.errors import UnsupportedError
    from dhc.frontend.onnx.tensors import from_onnx_dtype

    schema = _schema(case)
    if not case.model.graph.input or not schema.inputs:
        return []
    wanted = schema.inputs[0].type_str
    texts = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == wanted), [wanted])
    codes = [_CODES.get(text[7:-1], text[7:-1].upper()) for text in texts if text.startswith("tensor(")]
    known = []
    for code in codes:
        with contextlib.suppress(UnsupportedError):  # `types_not_read` lists them
            known.append(str(from_onnx_dtype(TensorProto.DataType.Value(code), "schema")))
    return known


def types_not_read() -> list[str]:
    """Element types of ONNX that dhc does not have."""
    from onnx import TensorProto

    from dhc.errors import UnsupportedError
    from dhc.frontend.onnx.tensors import from_onnx_dtype

    missing: list[str] = []
    for code in list(TensorProto.DataType.keys()):
        try:
            from_onnx_dtype(TensorProto.DataType.Value(code), "schema")
        except UnsupportedError:
            missing.append(code)
    return missing


_CODES = {"float": "FLOAT", "double": "DOUBLE"}


def _retyped(case: Any, dtype: str, every: bool) -> Any:
    """The model of a case with another element type of the first operand and of all that must have the same.

    Args:
        case: the case.
        dtype: the element type.
        every: also of those that have the same type in the case.
    """
    from dhc.frontend.onnx.tensors import to_onnx_dtype
    from dhc.ir.dtypes import dtype as as_dtype

    model = type(case.model)()
    model.CopyFrom(case.model)
    (node,) = model.graph.node
    formals = list(_schema(case).inputs)
    parameters = {name: formals[min(i, len(formals) - 1)].type_str for i, name in enumerate(node.input) if name}
    for attribute in node.attribute:
        if attribute.name == "to":  # a type of as many bits, for casts of bits
            bits = as_dtype(dtype).bits
            attribute.i = to_onnx_dtype(as_dtype(f"u{bits}" if 0 < bits <= 64 else dtype))
    first, code = parameters[model.graph.input[0].name], model.graph.input[0].type.tensor_type.elem_type
    for info in model.graph.input:
        if info.type.WhichOneof("value") != "tensor_type":
            continue
        if parameters.get(info.name) == first or every and info.type.tensor_type.elem_type == code:
            info.type.tensor_type.elem_type = to_onnx_dtype(as_dtype(dtype))
    return model
