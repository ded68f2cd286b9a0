"""A graph of dhc's core ops as a PyTorch module: how the networks of the suite reach PyTorch without an importer.

Only what those networks use is here; another op is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's own documents write it

import dhc
from bench.peers import PeerError
from dhc.frontend.onnx.constants import evaluate_constant

Tensor = torch.Tensor
Attrs = Mapping[str, Any]

_SAME: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "cast": lambda x: x.float(), "clamp": torch.clamp, "div": torch.div, "erf": torch.erf,
    "exp": torch.exp, "lt": torch.lt, "matmul": torch.matmul, "mul": torch.mul, "relu": F.relu,
    "sigmoid": torch.sigmoid, "silu": F.silu, "sqrt": torch.sqrt, "sub": torch.sub, "tanh": torch.tanh,
    "where": torch.where,
}  # fmt: skip


def _padded(x: Tensor, low: Any, high: Any, value: float = 0.0) -> Tensor:
    widths = [int(w) for pair in zip(reversed(low), reversed(high)) for w in pair]
    return F.pad(x, widths, value=value) if any(widths) else x


def _conv(a: Attrs, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    low, high = a["pads_low"] or (0,) * rank, a["pads_high"] or (0,) * rank
    if low != high:
        x, low = _padded(x, low, high), (0,) * rank
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    strides, dilations = a["strides"] or (1,) * rank, a["dilations"] or (1,) * rank
    return function(x, w, bias, strides, low, dilations, a["groups"])


def _conv_transpose(a: Attrs, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    low, high, extra = (a[key] or (0,) * rank for key in ("pads_low", "pads_high", "output_padding"))
    extra = tuple(e + before - after for e, before, after in zip(extra, low, high))
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return function(x, w, bias, a["strides"] or 1, low, extra, a["groups"], a["dilations"] or 1)


def _batch_norm(a: Attrs, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=a["epsilon"])


def _max_pool(a: Attrs, x: Tensor) -> Tensor:
    rank = x.dim() - 2
    low, high = a["pads_low"] or (0,) * rank, a["pads_high"] or (0,) * rank
    if low != high:
        x, low = _padded(x, low, high, float("-inf")), (0,) * rank
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    return function(x, a["kernel"], a["strides"] or 1, low, a["dilations"] or 1)


def _avg_pool(a: Attrs, x: Tensor) -> Tensor:
    if any(a["pads_low"]) or any(a["pads_high"]) or any(d != 1 for d in a["dilations"]):
        raise PeerError("avg_pool with pads is not translated")
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    return function(x, a["kernel"], a["strides"] or 1)


def _slice(a: Attrs, x: Tensor) -> Tensor:
    spans = []
    for start, size, step in zip(a["starts"], a["sizes"], a["steps"]):
        if step < 0:
            raise PeerError("slice backwards is not translated")
        spans.append(slice(start, start + (size - 1) * step + 1, step))
    return x[tuple(spans)]


def _resize(a: Attrs, x: Tensor) -> Tensor:
    mode = {"linear": ("linear", "bilinear", "trilinear")[x.dim() - 3], "nearest": "nearest"}[a["mode"]]
    wanted = ("half_pixel",) if a["mode"] == "linear" else ("asymmetric", "half_pixel")
    if a["coordinate"] not in wanted:
        raise PeerError(f"resize with {a['coordinate']} coordinates is not translated")
    return F.interpolate(x, tuple(a["shape"][2:]), mode=mode)


def _lstm(node: dhc.Node) -> torch.nn.Module:
    """Gates come in the order i, o, f, c and go in the order i, f, c, o."""
    a, arrays = node.attrs, [evaluate_constant(value) for value in node.operands[1:]]
    if any(array is None for array in arrays):
        raise PeerError("an lstm with weights or states that are not constant is not translated")
    w, r, b, h0, c0, peepholes, lengths = (torch.from_numpy(np.array(array)) for array in arrays)
    whole = bool((lengths == node.operands[0].shape[0]).all())
    if a["activations"] or a["clip"] or a["direction"] == "reverse" or bool(peepholes.any()) or not whole:
        raise PeerError("this lstm is not translated")
    directions, rows, features = w.shape
    hidden = rows // 4
    flat: list[Tensor] = []
    for d in range(directions):
        gates = torch.cat([torch.arange(g * hidden, (g + 1) * hidden) for g in (0, 2, 3, 1)])
        flat += [w[d][gates], r[d][gates], b[d][:rows][gates], b[d][rows:][gates]]
    module = torch.nn.LSTM(features, hidden, bidirectional=directions == 2)
    with torch.no_grad():
        for parameter, values in zip(module.parameters(), flat):
            parameter.copy_(values)
    return _LstmOutputs(module, h0, c0)


class _LstmOutputs(torch.nn.Module):
    """An LSTM whose outputs have the directions on an axis of their own."""

    def __init__(self, module: torch.nn.LSTM, h0: Tensor, c0: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("h0", h0)
        self.register_buffer("c0", c0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.module(x, (self.h0, self.c0))
        steps, batch, _ = y.shape
        return y.reshape(steps, batch, self.h0.shape[0], -1).transpose(1, 2), h, c


_OTHERS: dict[str, Callable[..., Any]] = {
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "broadcast_to": lambda a, x: x.expand(tuple(a["shape"])),
    "concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "elu": lambda a, x: F.elu(x, a["alpha"]),
    "gather": lambda a, x, i: torch.index_select(x, a["axis"], i.reshape(-1)),
    "gelu": lambda a, x: F.gelu(x, approximate=a["approximate"]),
    "group_norm": lambda a, x, scale, bias: F.group_norm(x, a["groups"], scale, bias, a["epsilon"]),
    "instance_norm": lambda a, x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=a["epsilon"]),
    "layer_norm": lambda a, x, *w: F.layer_norm(x, x.shape[a["axis"] :], *w, eps=a["epsilon"]),
    "leaky_relu": lambda a, x: F.leaky_relu(x, a["alpha"]),
    "max_pool": _max_pool,
    "pad": lambda a, x, value: _padded(x, a["low"], a["high"], float(value)),
    "reduce_mean": lambda a, x: x.mean(tuple(a["axes"]) or None, keepdim=a["keepdims"]),
    "reshape": lambda a, x: x.reshape(tuple(a["shape"])),
    "resize": _resize,
    "slice": _slice,
    "softmax": lambda a, x: F.softmax(x, a["axis"]),
    "transpose": lambda a, x: x.permute(tuple(a["perm"])),
}


class GraphModule(torch.nn.Module):
    """Runs the nodes in order; constants are buffers.

    Raises:
        PeerError: a node that is not translated.
    """

    def __init__(self, graph: dhc.Graph) -> None:
        super().__init__()
        numbers = {value: str(number) for number, value in enumerate(graph.inputs)}
        self._inputs = list(numbers.values())
        self._steps: list[tuple[Callable[..., Any], list[str], list[str]]] = []
        self._constants: list[str] = []
        for node in graph:
            for result in node.results:
                numbers[result] = str(len(numbers))
            names = [numbers[value] for value in node.operands]
            results = [numbers[value] for value in node.results]
            op = node.op.name
            if op in ("constant", "dims"):
                array = np.asarray(node.attrs["value"] if op == "constant" else node.attrs["values"])
                self.register_buffer(f"c{results[0]}", torch.from_numpy(np.array(array)))
                self._constants.append(results[0])
            elif op == "lstm":
                module = _lstm(node)
                self.add_module(f"m{results[0]}", module)
                self._steps.append((module, names[:1], results))
            elif op in _SAME:
                self._steps.append((_SAME[op], names, results))
            elif op in _OTHERS:
                self._steps.append((_bound(_OTHERS[op], dict(node.attrs)), names, results))
            else:
                raise PeerError(f"{op} is not translated to PyTorch")
        self._outputs = [numbers[value] for value in graph.outputs]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values = {name: getattr(self, f"c{name}") for name in self._constants}
        values.update(zip(self._inputs, inputs))
        for function, names, results in self._steps:
            made = function(*[values[name] for name in names])
            if len(results) == 1:
                values[results[0]] = made
            else:
                values.update(zip(results, made))
        return [values[name] for name in self._outputs]


def _bound(function: Callable[..., Any], attrs: Attrs) -> Callable[..., Any]:
    return lambda *operands: function(attrs, *operands)


def channels_last(module: torch.nn.Module) -> None:
    """Weights of convolutions in the order that PyTorch's CPU kernels prefer."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for name, buffer in module.named_buffers():
        if buffer.dim() in formats and buffer.shape[1] > 1:
            owner = module
            *path, last = name.split(".")
            for part in path:
                owner = getattr(owner, part)
            setattr(owner, last, buffer.contiguous(memory_format=formats[buffer.dim()]))


def input_tensor(array: np.ndarray) -> Tensor:
    """An input in the memory order of the weights."""
    tensor = torch.from_numpy(array)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()]) if tensor.dim() in formats else tensor
