"""Every op keeps the promises of the registry: one record gives inference, reference, text, Python function, cost."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from hypothesis import given, settings

import dhc
from dhc.errors import DhcError
from dhc.ir import Builder, Graph, NotDifferentiable, symbols
from dhc.ir import dtypes as dt
from dhc.ir.kinds import Composite, Contract, Elementwise, Map, Opaque, Reduce, Structural
from dhc.ir.op import REQUIRED, OpDef, Operand
from dhc.ir.registry import all_ops, get, register
from dhc.ir.text import parse_graph, print_graph
from dhc.ir.verifier import verify
from tests.ir.op_examples import HOST_OPS, REGION_OPS, examples_for
from tests.support.random_graphs import random_graphs
from tests.support.random_ops import RULES

OPS = all_ops()
KINDS = (Composite, Contract, Elementwise, Map, Opaque, Reduce, Structural)

NO_SOURCE = {
    "copy": "a step of placement: models have no such operator",
    "read_dims": "binds sizes of dhc's own types",
    "fused": "a group that a pass makes",
}
"""Ops that follow no operator, function or paper, and why."""

NO_RULE = {
    "constant": "every fresh value may be one",
    "read_dims": "a size read from data would have to be drawn before the data",
    "nms": "its own tests compare it with ONNX Runtime",
    "tfidf": "its own tests and ONNX's cases: tables that fit each other are drawn by hand",
    **dict.fromkeys(
        (
            "sequence_empty",
            "sequence_construct",
            "sequence_insert",
            "sequence_erase",
            "sequence_at",
            "sequence_length",
            "split_to_sequence",
            "concat_from_sequence",
        ),
        "random graphs hold tensors only: test_host_values.py",
    ),
    **dict.fromkeys(
        ("optional", "optional_empty", "optional_has_element", "optional_get_element"),
        "random graphs hold tensors only: test_host_values.py",
    ),
    **dict.fromkeys(
        (
            "string_concat",
            "string_split",
            "string_normalize",
            "regex_full_match",
            "label_encode",
            "to_string",
            "from_string",
            "decode_image",
        ),
        "runs in the interpreter only, on text and encoded bytes: test_text_ops.py",
    ),
    "determinant": "rounding of an elimination has no simple bound: compared with LAPACK",
    "unique_rows": "its examples and ONNX's cases judge it; the generator draws the op of one dimension",
    "roi_align": "steep between elements: ONNX's cases judge it",
    "tree_ensemble": "operands describe trees: its examples and ONNX's cases judge it",
    "grid_sample": "steep between elements: ONNX's cases and gradients by differences judge it",
}
"""Ops that random graphs do not draw, and why."""


@pytest.fixture(params=OPS, ids=lambda op: op.name)
def op(request) -> OpDef:
    return request.param


def test_names_and_documentation(op):
    assert re.fullmatch(r"[a-z][a-z0-9_.]*", op.name)
    assert re.fullmatch(r"\S.*\S", op.doc) and op.doc[-1] == ".", "one line with a full stop"
    assert len(op.doc) <= 150
    assert op.since >= 1
    for attr in op.attrs:
        assert attr.doc, f"{attr.name} is not documented"
        assert re.fullmatch(r"[a-z][a-z0-9_]*", attr.name)


def test_source_or_reason(op):
    assert op.source or NO_SOURCE.get(op.name), "name the ONNX operator, ECVL function or paper it follows"
    assert not (op.source and op.name in NO_SOURCE), "it has a source now: take it off the list"


def test_operands(op):
    names = [o.name for o in op.operands]
    assert len(set(names)) == len(names)
    for index, operand in enumerate(op.operands):
        assert operand.dtypes and operand.dtypes <= dt.ANY
        assert operand.same is None or operand.same in names[:index]
        assert not operand.variadic or index == len(names) - 1
        if operand.optional:
            assert all(o.optional or o.variadic for o in op.operands[index:])
    if op.commutative:
        assert len(op.operands) == 2 and op.operands[0].dtypes == op.operands[1].dtypes


def test_attributes(op):
    names = [a.name for a in op.attrs]
    assert len(set(names)) == len(names)
    assert not set(names) & {"name", "regions", "location", "graph"}, "the builder needs these names itself"
    for attr in op.attrs:
        if attr.default is REQUIRED or attr.default is None:
            continue
        assert op.check_attr(attr.name, attr.default) == attr.default
        assert not attr.choices or attr.default in attr.choices
    with pytest.raises(DhcError, match="no attribute"):
        op.check_attrs({"no_such_attribute": 1})


def test_inference_reference_kind(op):
    assert callable(op.infer) and callable(op.reference)
    assert isinstance(op.kind, KINDS) and op.kind.name


def test_gradient(op):
    if isinstance(op.grad, NotDifferentiable):
        assert op.grad.reason
    else:
        assert callable(op.grad) or isinstance(op.kind, Composite)


def test_builder_method_and_function(op):
    if op.name != "constant":  # written by hand: the array's dtype need not be said
        assert getattr(Builder(Graph()), op.name).__doc__ == op.doc
    function = getattr(dhc.ops, op.name + "_" if op.name == "if" else op.name)
    assert function.__doc__ and inspect.signature(function)


def test_random_graphs_draw_it(op):
    drawn = {rule.op for rule in RULES}
    assert (op.name in drawn) != (op.name in NO_RULE), "give it a rule in random_ops.py or a reason here, not both"


def _same(a, b) -> bool:
    if a is None or isinstance(a, list):
        return a is b or (len(a) == len(b) and all(map(_same, a, b)))
    left, right = np.asarray(a), np.asarray(b)
    if left.dtype == object:  # strings: bytes would be addresses
        return left.tolist() == right.tolist()
    return left.tobytes() == right.tobytes()


def test_examples_run_print_and_parse(op):
    """Typical calls: the reference gives the inferred types, text is a fix-point, the cost is a count."""
    if op.name in REGION_OPS:
        pytest.skip("ops with nested graphs are drawn by test_ops_with_nested_graphs")
    if op.name in HOST_OPS:
        pytest.skip("operands that are no tensors are made by test_host_values.py")
    examples = examples_for(op)
    assert examples, "give it examples: arrays and attributes of a typical call"
    for example in examples[:8]:
        graph = example.graph()
        verify(graph)
        text = print_graph(graph)
        parsed = parse_graph(text)
        assert print_graph(parsed) == text
        wanted, found = graph.evaluate(*example.arrays), parsed.evaluate(*example.arrays)
        for a, b in zip(wanted, found, strict=True):
            assert _same(a, b)
        node = next(n for n in reversed(graph) if n.op is op)
        cost = op.cost_of(node)
        sizes = dict.fromkeys([*symbols.free_symbols(cost.flops), *symbols.free_symbols(cost.bytes)], 3)
        assert symbols.evaluate(cost.flops, sizes) >= 0 and symbols.evaluate(cost.bytes, sizes) >= 0


@pytest.mark.parametrize("name", [n for n in REGION_OPS if n in {op.name for op in OPS}])
def test_ops_with_nested_graphs(name):
    seen = []

    @settings(max_examples=30)
    @given(random_graphs(only={name}))
    def run(case):
        seen.extend(n for n in case.graph if n.op.name == name)
        text = print_graph(case.graph)
        parsed = parse_graph(text)
        assert print_graph(parsed) == text
        case.check(case.graph.evaluate(**case.inputs()), parsed.evaluate(**case.inputs()))

    run()
    assert seen


def test_lists_of_exceptions_name_real_ops():
    names = {op.name for op in OPS}
    assert set(NO_RULE) <= names and set(NO_SOURCE) <= names
    assert {rule.op for rule in RULES} <= names


def test_the_core_op_set_is_there():
    catalogue = """
        add sub mul div pow mod fmod minimum maximum neg abs sign exp log log1p expm1 sqrt rsqrt sin cos tan
        asin acos atan sinh cosh tanh asinh acosh atanh erf floor ceil round trunc eq ne lt le gt ge logical_and
        logical_or logical_xor logical_not bit_and bit_or bit_xor bit_not shift_left shift_right is_nan is_inf
        where cast bitcast clamp relu leaky_relu elu selu celu gelu sigmoid hard_sigmoid hard_swish softplus
        softsign silu mish thresholded_relu real imag conj complex reduce_sum reduce_mean reduce_prod reduce_max
        reduce_min reduce_any reduce_all argmax argmin logsumexp cumsum cumprod quantize dequantize
        random_uniform random_normal random_bits constant fused read_dims dims copy reshape transpose
        broadcast_to slice flip pad concat split tile depth_to_space space_to_depth iota dynamic_slice
        dynamic_update_slice triangle one_hot eye reverse_sequence gather gather_elements gather_nd
        scatter_elements scatter_nd topk sort nonzero unique compress nms if loop scan matmul conv
        conv_transpose max_pool max_pool_indices avg_pool lp_pool resize softmax log_softmax batch_norm
        layer_norm instance_norm group_norm rms_norm lrn attention lstm gru rnn
    """.split()
    assert set(catalogue) <= {op.name for op in OPS}


def test_unknown_ops_and_double_registration():
    with pytest.raises(DhcError, match=r"no op 'softmx'.*softmax"):
        get("softmx")
    with pytest.raises(ValueError, match="already registered"):
        register(get("add"))
    record = get("add")
    bad = OpDef(
        "test_bad", "Bad.", (Operand("a", variadic=True), Operand("b")), record.infer, record.reference, record.kind
    )
    with pytest.raises(ValueError, match="variadic"):
        register(bad)
