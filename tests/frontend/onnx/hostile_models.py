"""Hostile ONNX files, each with the class of error that must come back. Built with protobuf alone: no checker helps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, SparseTensorProto, TensorProto, helper

FLOAT = TensorProto.FLOAT


def vector(name: str, size: Any = 4) -> Any:
    return helper.make_tensor_value_info(name, FLOAT, [size])


def relu(source: str, target: str) -> Any:
    return helper.make_node("Relu", [source], [target])


def model(
    nodes: list[Any],
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    initializers: list[Any] | None = None,
    opsets: tuple[tuple[str, int], ...] = (("", 17),),
    functions: list[Any] | None = None,
) -> ModelProto:
    graph = GraphProto(name="g")
    graph.node.extend(nodes)
    graph.input.extend([vector("x")] if inputs is None else inputs)
    graph.output.extend([vector("y")] if outputs is None else outputs)
    graph.initializer.extend(initializers or [])
    result = ModelProto(ir_version=8, graph=graph)
    for domain, version in opsets:
        result.opset_import.add(domain=domain, version=version)
    result.functions.extend(functions or [])
    return result


def small_network() -> ModelProto:
    """Something worth truncating and mutating: a convolution, a pool, a reshape, a product."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((3, 1, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(3).astype(np.float32),
        "shape": np.array([0, -1]),
        "m": rng.standard_normal((12, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        relu("c", "r"),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["t"]),
        helper.make_node("Softmax", ["t"], ["y"], axis=-1),
    ]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 1, 4, 4])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", 2])]
    tensors = [helper.make_tensor(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape, v.tobytes(), raw=True)
               for k, v in weights.items()]  # fmt: skip
    return model(nodes, inputs, outputs, tensors)


def shape_network() -> ModelProto:
    """Shape arithmetic, slices and a gather."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "minus"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("Slice", ["r", "zero", "two", "one"], ["l"]),
        helper.make_node("Pad", ["l", "pads"], ["q"]),
        helper.make_node("Transpose", ["q"], ["y"], perm=[1, 0]),
    ]
    numbers = {"zero": [0], "one": [1], "two": [2], "minus": [-1], "pads": [0, 1, 0, 1]}
    tensors = [helper.make_tensor(k, TensorProto.INT64, [len(v)], v) for k, v in numbers.items()]
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", 2, 3])]
    return model(nodes, inputs, [helper.make_tensor_value_info("y", FLOAT, None)], tensors)


def branch_network() -> ModelProto:
    """An If, quantization and a constant attribute."""
    branches = {}
    for name, op in (("then_branch", "Exp"), ("else_branch", "Neg")):
        graph = GraphProto(name=name)
        graph.node.append(helper.make_node(op, ["d"], [name]))
        graph.output.append(vector(name))
        branches[name] = graph
    nodes = [
        helper.make_node("Constant", [], ["scale"], value=helper.make_tensor("v", FLOAT, [], [0.5])),
        helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("v", TensorProto.UINT8, [], [3])),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("ReduceSum", ["d"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "scale"], ["cond"]),
        helper.make_node("If", ["cond"], ["y"], **branches),
    ]
    return model(nodes)


def _field(number: int, data: bytes) -> bytes:
    """A protobuf field that holds a message."""
    length, digits = len(data), bytearray()
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *digits, length]) + data


def _nested_ifs(depth: int) -> bytes:
    """Ifs in Ifs, written byte by byte: the protobuf package refuses to build what is so deep."""
    node = helper.make_node("Identity", ["x"], ["leaf"]).SerializeToString()
    name = "leaf"
    for level in range(depth):
        graph = GraphProto(name=f"level{level}")
        graph.output.append(vector(name))
        then = AttributeProto(name="then_branch", type=AttributeProto.GRAPH).SerializeToString()
        then += _field(6, graph.SerializeToString() + _field(1, node))
        otherwise = GraphProto(name="other")
        otherwise.node.append(helper.make_node("Identity", ["x"], [f"e{level}"]))
        otherwise.output.append(vector(f"e{level}"))
        name = f"v{level}"
        outer = helper.make_node("If", ["c"], [name], else_branch=otherwise)
        node = outer.SerializeToString() + _field(5, then)
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    whole = model([], [vector("x"), condition], [vector(name)])
    graph = whole.graph.SerializeToString() + _field(1, node)
    whole.ClearField("graph")
    return bytes(whole.SerializeToString() + _field(7, graph))


def _function(name: str, nodes: list[Any]) -> FunctionProto:
    function = FunctionProto(name=name, domain="f")
    function.input.append("a")
    function.output.append("z")
    function.node.extend(nodes)
    function.opset_import.add(domain="", version=17)
    function.opset_import.add(domain="f", version=1)
    return function


def _doubling(levels: int) -> ModelProto:
    """Functions of which each calls the next twice: 2**levels nodes when unfolded."""
    functions = []
    for level in range(levels):
        call = [helper.make_node(f"F{level + 1}", [s], [t], domain="f") for s, t in (("a", "m"), ("m", "z"))]
        functions.append(_function(f"F{level}", call))
    functions.append(_function(f"F{levels}", [relu("a", "z")]))
    node = helper.make_node("F0", ["x"], ["y"], domain="f")
    return model([node], opsets=(("", 17), ("f", 1)), functions=functions)


def _nested_loops(depth: int) -> ModelProto:
    """Loops in loops whose carried value grows: each level is imported more than once."""
    node = helper.make_node("Concat", ["s0", "s0"], ["o0"], axis=0)
    for level in range(depth):
        graph = GraphProto(name=f"body{level}")
        graph.input.extend([
            helper.make_tensor_value_info(f"i{level}", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"c{level}", TensorProto.BOOL, []),
            vector(f"s{level}", None),
        ])  # fmt: skip
        graph.node.extend([helper.make_node("Identity", [f"c{level}"], [f"d{level}"]), node])
        graph.output.extend([helper.make_tensor_value_info(f"d{level}", TensorProto.BOOL, []), vector(node.output[0])])
        outer = "x" if level == depth - 1 else f"s{level + 1}"
        target = "y" if level == depth - 1 else f"o{level + 1}"
        node = helper.make_node("Loop", ["two", "", outer], [target], body=graph)
    return model([node], outputs=[vector("y", None)], initializers=[_ints("two", 2, scalar=True)])


def _external(**entries: str) -> ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[tensor])


def _ints(name: str, *values: int, scalar: bool = False) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [] if scalar else [len(values)], values)


def _sized(op: str, inputs: list[str], *sizes: int, **attributes: Any) -> ModelProto:
    """One node whose operand `s` holds sizes; its type of output is left open."""
    given = [i for i in inputs if i == "x"]
    node = helper.make_node(op, inputs, ["y"], **attributes)
    output = helper.make_tensor_value_info("y", FLOAT, None)
    return model([node], [vector("x")] if given else [], [output], [_ints("s", *sizes)])


def _raw(dims: list[int], size: int) -> ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=bytes(size))
    return model([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[tensor])


def _sparse(dims: list[int], indices: list[int]) -> ModelProto:
    result = model([helper.make_node("Add", ["x", "w"], ["y"])])
    sparse = SparseTensorProto(dims=dims)
    sparse.values.CopyFrom(helper.make_tensor("w", FLOAT, [len(indices)], [1.0] * len(indices)))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [len(indices)], indices))
    result.graph.sparse_initializer.append(sparse)
    return result


def _node(op: str, *inputs: str, **attributes: Any) -> ModelProto:
    return model([helper.make_node(op, list(inputs), ["y"], **attributes)])


MODEL, UNSUPPORTED, RESOURCE, ANY = "ModelError", "UnsupportedError", "ResourceError", "DhcError"

# Name -> (the class of the error, what makes the file's bytes). RESOURCE cases import; running them is refused.
CASES: dict[str, tuple[str, Callable[[], bytes | ModelProto]]] = {
    "empty file": (MODEL, lambda: b""),
    "text": (MODEL, lambda: b"this is not a model\n" * 10),
    "image": (MODEL, lambda: b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "zeros": (MODEL, lambda: bytes(4096)),
    "no graph": (MODEL, lambda: ModelProto(ir_version=8)),
    "no opset": (MODEL, lambda: model([relu("x", "y")], opsets=())),
    "opset 3": (MODEL, lambda: model([relu("x", "y")], opsets=(("", 3),))),
    "opset 999": (MODEL, lambda: model([relu("x", "y")], opsets=(("", 999),))),
    "unknown domain": (
        UNSUPPORTED,
        lambda: model([helper.make_node("Relu", ["x"], ["y"], domain="com.example")], opsets=(("com.example", 1),)),
    ),
    "unknown operator": (UNSUPPORTED, lambda: _node("Reluu", "x")),
    **{
        f"truncated at {part}%": (MODEL, lambda part=part: _truncated(part))  # type: ignore[misc]
        for part in (1, 10, 30, 50, 70, 90, 99)
    },
    "cycle": (MODEL, lambda: model([relu("b", "a"), relu("a", "b"), relu("a", "y")])),
    "cycle of one": (MODEL, lambda: model([helper.make_node("Add", ["x", "y"], ["y"])])),
    "duplicate node output": (MODEL, lambda: model([relu("x", "y"), relu("x", "y")])),
    "duplicate input": (MODEL, lambda: model([relu("x", "y")], [vector("x"), vector("x")])),
    "duplicate output": (MODEL, lambda: model([relu("x", "y")], outputs=[vector("y"), vector("y")])),
    "duplicate initializer": (MODEL, lambda: model([relu("w", "y")], initializers=[_ints("w", 1), _ints("w", 1)])),
    "node output named as an input": (MODEL, lambda: model([relu("x", "x")])),
    "undefined name": (MODEL, lambda: model([relu("nowhere", "y")])),
    "undefined output": (MODEL, lambda: model([relu("x", "z")])),
    "initializer too short": (MODEL, lambda: _raw([4], 15)),
    "initializer too long": (MODEL, lambda: _raw([4], 17)),
    "initializer of 2**80 elements": (MODEL, lambda: _raw([2**40, 2**40], 16)),
    "initializer of negative size": (MODEL, lambda: _raw([-4], 16)),
    "initializer without data": (MODEL, lambda: _raw([2**36], 0)),
    "sparse tensor of 2**60 elements": (ANY, lambda: _sparse([2**30, 2**30], [5])),
    "sparse index out of range": (MODEL, lambda: _sparse([4], [4])),
    "60 nested ifs": (MODEL, lambda: _nested_ifs(60)),
    "28 nested ifs": (MODEL, lambda: _nested_ifs(28)),
    "20 nested growing loops": (ANY, lambda: _nested_loops(20)),
    "function that calls itself": (
        MODEL,
        lambda: model(
            [helper.make_node("F", ["x"], ["y"], domain="f")],
            opsets=(("", 17), ("f", 1)),
            functions=[_function("F", [helper.make_node("F", ["a"], ["z"], domain="f")])],
        ),
    ),
    "functions that double 30 times": (ANY, lambda: _doubling(30)),
    "external data above the folder": (MODEL, lambda: _external(location="../secret.bin")),
    "external data by an absolute path": (MODEL, lambda: _external(location="/etc/passwd")),
    "external data in a subfolder": (MODEL, lambda: _external(location="sub/weights.bin")),
    "external data behind a symlink": (MODEL, lambda: _external(location="symlink.bin")),
    "external data behind a hard link": (MODEL, lambda: _external(location="hardlink.bin")),
    "external data that is missing": (MODEL, lambda: _external(location="missing.bin")),
    "external data that is a folder": (MODEL, lambda: _external(location="sub")),
    "external data that is a pipe": (MODEL, lambda: _external(location="pipe")),
    "external data without a place": (MODEL, lambda: _external()),
    "external offset beyond the file": (MODEL, lambda: _external(location="good.bin", offset="4096", length="16")),
    "external length beyond the file": (MODEL, lambda: _external(location="good.bin", length="4096")),
    "external offset negative": (MODEL, lambda: _external(location="good.bin", offset="-16", length="16")),
    "external offset no number": (MODEL, lambda: _external(location="good.bin", offset="1e3")),
    "negative kernel": (MODEL, lambda: _node("MaxPool", "x", kernel_shape=[-1])),
    "attribute of a wrong kind": (MODEL, lambda: _node("Softmax", "x", axis="last")),
    "axis out of range": (MODEL, lambda: _node("Softmax", "x", axis=7)),
    "perm repeats": (MODEL, lambda: _node("Transpose", "x", perm=[0, 0])),
    "too few operands": (MODEL, lambda: _node("Add", "x")),
    "ConstantOfShape of 2**36": (RESOURCE, lambda: _sized("ConstantOfShape", ["s"], 2**36)),
    "ConstantOfShape of 2**120": (RESOURCE, lambda: _sized("ConstantOfShape", ["s"], 2**60, 2**60)),
    "ConstantOfShape of a negative size": (MODEL, lambda: _sized("ConstantOfShape", ["s"], -5)),
    "Expand to 2**40": (RESOURCE, lambda: _sized("Expand", ["x", "s"], 2**38, 4)),
    "Tile 2**40 times": (RESOURCE, lambda: _sized("Tile", ["x", "s"], 2**40)),
    "Pad by 2**50": (RESOURCE, lambda: _sized("Pad", ["x", "s"], 2**50, 0)),
    "OneHot of depth 2**50": (
        RESOURCE,
        lambda: model(
            [helper.make_node("OneHot", ["x", "s", "v"], ["y"])],
            outputs=[helper.make_tensor_value_info("y", FLOAT, None)],
            initializers=[_ints("s", 2**50), helper.make_tensor("v", FLOAT, [2], [0.0, 1.0])],
        ),
    ),
    "random numbers, 2**44 of them": (
        RESOURCE,
        lambda: model([helper.make_node("RandomNormal", [], ["y"], shape=[2**44])], [], [vector("y", 2**44)]),
    ),
    "Range to 2**50": (
        RESOURCE,
        lambda: model(
            [helper.make_node("Range", ["a", "b", "c"], ["y"])], [], [helper.make_tensor_value_info("y", 7, None)],
            [_ints("a", 0, scalar=True), _ints("b", 2**50, scalar=True), _ints("c", 1, scalar=True)],
        ),
    ),
    "float Range to 1e18": (
        RESOURCE,
        lambda: model(
            [helper.make_node("Range", ["a", "b", "c"], ["y"])], [], [helper.make_tensor_value_info("y", 1, None)],
            [helper.make_tensor(k, FLOAT, [], [v]) for k, v in (("a", 0.0), ("b", 1e18), ("c", 1.0))],
        ),
    ),
    "Resize by 1e12": (
        RESOURCE,
        lambda: model(
            [helper.make_node("Resize", ["x", "", "s"], ["y"])],
            outputs=[helper.make_tensor_value_info("y", FLOAT, None)],
            initializers=[helper.make_tensor("s", FLOAT, [1], [1e12])],
        ),
    ),
}  # fmt: skip


def _truncated(part: int) -> bytes:
    data = small_network().SerializeToString()
    return bytes(data[: max(len(data) * part // 100, 1)])


def write_cases(folder: Path) -> dict[str, Path]:
    """Writes every case and the files that external data points to; returns the paths by name."""
    models = folder / "models"
    models.mkdir()
    (folder / "secret.bin").write_bytes(bytes(16))
    (models / "good.bin").write_bytes(bytes(16))
    (models / "linked.bin").write_bytes(bytes(16))
    (models / "sub").mkdir()
    (models / "sub" / "weights.bin").write_bytes(bytes(16))
    (models / "symlink.bin").symlink_to(models / "good.bin")
    os.link(models / "linked.bin", models / "hardlink.bin")
    os.mkfifo(models / "pipe")
    paths: dict[str, Path] = {}
    for number, (name, (_, build)) in enumerate(CASES.items()):
        made = build()
        paths[name] = models / f"{number:03}.onnx"
        paths[name].write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return paths
