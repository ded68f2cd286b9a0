"""What --precision leaves in fp32: layers with nothing to gain, quantized ones, and those of a generator."""

from __future__ import annotations

import numpy as np
import pytest

import dhc
from dhc.ir import Builder, Graph


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def stored(graph, cpu="x86-64-v3"):
    return len(dhc.compile(graph, precision="bf16", cpu=cpu).report.backend["stored_16_bit"])


def upsampled(b, x, channels):
    weights = b.constant(random(x.shape[1], channels, 4, 4), "f32")
    return b.relu(b.conv_transpose(x, weights, strides=(2, 2), pads_low=(1, 1), pads_high=(1, 1)))


@pytest.mark.parametrize(("last", "count"), [("", 0), ("conv", 3), ("softmax", 0)])
def test_layers_that_write_an_image(last, count):
    graph = Graph("generator")
    b = Builder(graph)
    y = upsampled(b, upsampled(b, graph.input("x", "f32", (1, 40, 16, 16)), 24), 12)
    if last == "conv":
        y = b.conv(y, b.constant(random(8, 12, 1, 1), "f32"))
    elif last == "softmax":
        y = b.softmax(y, axis=1)
    graph.output(y, names=["y"])
    assert stored(graph) == count


@pytest.mark.parametrize(("rows", "count"), [(1, 0), (100, 1), ("N", 1)])
def test_few_products(rows, count):
    graph = Graph("layer")
    b = Builder(graph)
    graph.output(b.matmul(graph.input("x", "f32", (rows, 64)), b.constant(random(64, 64), "f32")), names=["y"])
    assert stored(graph) == count


@pytest.mark.parametrize(("size", "count"), [(8, 0), (256, 1), ("W", 1)])
def test_few_positions(size, count):
    graph = Graph("layer")
    b = Builder(graph)
    weights = b.constant(random(16, 16, 5), "f32")
    graph.output(b.conv(graph.input("x", "f32", (1, 16, size)), weights, strides=(2,)), names=["y"])
    assert stored(graph) == count


def test_quantized_layers_stay():
    graph = Graph("quantized")
    b = Builder(graph)
    weights = b.constant(random(32, 32, 5, 5), "f32")
    y = b.conv(graph.input("x", "f32", (1, 32, 32, 32)), weights, pads_low=(2, 2), pads_high=(2, 2))
    graph.output(b.cast(b.mul(y, b.constant(np.float32(3), "f32")), dtype="i8"), names=["y"])
    assert stored(graph) == 0
