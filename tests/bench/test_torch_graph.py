"""Networks reach PyTorch with the same answers: every op that the suite uses, against the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import dhc
from bench.networks.net import Net, Value, max_pool, upsample
from bench.networks.signals import lstm
from bench.networks.transformers import attention

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

IMAGE, SIGNAL, VOLUME = (2, 3, 9, 8), (1, 4, 20), (1, 2, 6, 5, 4)

CASES: dict[str, tuple[tuple[int, ...], Callable[[Net, Value], Value]]] = {
    "conv": (IMAGE, lambda n, x: n.conv(x, 6, 3, stride=2, groups=3, bias=True)),
    "conv 1-D": (SIGNAL, lambda n, x: n.conv(x, 5, 7, stride=2)),
    "conv 3-D": (VOLUME, lambda n, x: n.conv(x, 3, 3, dilation=2)),
    "transposed": (IMAGE, lambda n, x: n.deconv(x, 4, 3, 2, padding=1, output_padding=1, bias=True)),
    "batch norm": (IMAGE, lambda n, x: n.batch_norm(x)),
    "instance norm": (VOLUME, lambda n, x: n.instance_norm(x, affine=True)),
    "group norm": (SIGNAL, lambda n, x: n.group_norm(x, 2)),
    "layer norm": (IMAGE, lambda n, x: n.layer_norm(x)),
    "prelu": (IMAGE, lambda n, x: n.prelu(x)),
    "elu": (IMAGE, lambda n, x: dhc.ops.leaky_relu(dhc.ops.elu(x), alpha=0.1)),
    "gelu": (IMAGE, lambda n, x: dhc.ops.gelu(dhc.ops.silu(x))),
    "clamp": (IMAGE, lambda n, x: dhc.ops.clamp(x, 0.0, 0.5)),
    "max pool": (IMAGE, lambda n, x: max_pool(x, 3, stride=2, padding=1)),
    "average pool": (IMAGE, lambda n, x: dhc.ops.avg_pool(x, kernel=(2, 2), strides=(2, 2))),
    "resize": (IMAGE, lambda n, x: upsample(x, (13, 16))),
    "resize 3-D": (VOLUME, lambda n, x: upsample(x, (12, 10, 8))),
    "pad and slice": (IMAGE, lambda n, x: dhc.ops.pad(x, 0.0, low=(0, 0, 1, 0), high=(0, 0, 0, 2))[:, 1:, ::2]),
    "gather": (IMAGE, lambda n, x: dhc.ops.gather(x, n.fixed(np.array([2, 0, 1, 1])), axis=2)),
    "concat": (IMAGE, lambda n, x: dhc.ops.concat(x, x * 2.0, axis=1)),
    "mean": (IMAGE, lambda n, x: dhc.ops.reduce_mean(x, axes=(2, 3), keepdims=True)),
    "expand": ((1, 3, 1, 1), lambda n, x: dhc.ops.broadcast_to(x, shape=(1, 3, 4, 5))),
    "lstm": ((7, 2, 5), lambda n, x: lstm(n, x, 3, bidirectional=True)),
    "attention": ((2, 5, 8), lambda n, x: attention(n, x, 2)),
}


@pytest.mark.parametrize("case", CASES)
def test_same_answer_as_the_interpreter(case: str) -> None:
    from bench.peers.torch_graph import GraphModule, channels_last, input_tensor

    shape, build = CASES[case]
    net = Net(case)
    net.output(build(net, net.input("x", shape)), "y")
    module = GraphModule(net.graph)
    channels_last(module)
    x = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    with torch.no_grad():
        (actual,) = module(input_tensor(x))
    (wanted,) = net.graph.evaluate(x)
    np.testing.assert_allclose(actual.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_an_op_that_is_not_translated_is_named() -> None:
    from bench.peers import PeerError
    from bench.peers.torch_graph import GraphModule

    net = Net("odd")
    net.output(dhc.ops.cumsum(net.input("x", (3,)), axis=0), "y")
    with pytest.raises(PeerError, match="cumsum is not translated"):
        GraphModule(net.graph)
