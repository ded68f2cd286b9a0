"""Writing networks with dhc's graph API: layers whose weights come from one seeded generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import dhc

Value = Any  # dhc.Value; `dhc` resolves its names when they are first used


class Net:
    """A graph under construction.

    Weights are drawn as He et al. (ICCV 2015) say: variance gain / fan-in, so that activations keep their size from
    layer to layer and outputs depend on inputs. Batch norms get scales near one and statistics near (0, 1).

    Args:
        name: of the graph; with the layers' order it determines the weights.

    Attributes:
        graph: the graph.
        parameters: trainable numbers so far; statistics of batch norms do not count.
    """

    def __init__(self, name: str) -> None:
        self.graph = dhc.Graph(name)
        self.parameters = 0
        self._rng = np.random.default_rng([ord(letter) for letter in name])

    def input(self, name: str, shape: Sequence[int]) -> Value:
        return self.graph.input(name, "f32", tuple(shape))

    def output(self, value: Value, name: str) -> None:
        self.graph.output(value, names=[name])

    # ---- weights -------------------------------------------------------------------------------------------------

    def normal(self, shape: Sequence[int], deviation: float) -> Value:
        """A trainable tensor around zero."""
        return self._trainable(self._rng.standard_normal(tuple(shape), dtype=np.float32) * np.float32(deviation))

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Value:
        """A trainable tensor between two numbers."""
        return self._trainable(self._rng.uniform(low, high, tuple(shape)))

    def fixed(self, array: np.ndarray) -> Value:
        """Numbers that are not trained."""
        return dhc.ops.constant(self.graph, np.ascontiguousarray(array))

    def _trainable(self, array: np.ndarray) -> Value:
        self.parameters += array.size
        return self.fixed(array.astype(np.float32))

    # ---- layers --------------------------------------------------------------------------------------------------

    def conv(
        self,
        x: Value,
        channels: int,
        kernel: int | Sequence[int] = 3,
        stride: int = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        gain: float = 2.0,
    ) -> Value:
        """A convolution over all axes behind the channels; by default padded so that stride 1 keeps the size."""
        rank, ins = x.type.rank - 2, x.shape[1]
        kernels = (kernel,) * rank if isinstance(kernel, int) else tuple(kernel)
        if padding is None:
            pads = tuple(dilation * (k - 1) // 2 for k in kernels)
        else:
            pads = (padding,) * rank if isinstance(padding, int) else tuple(padding)
        fan_in = ins // groups * int(np.prod(kernels))
        weight = self.normal((channels, ins // groups, *kernels), (gain / fan_in) ** 0.5)
        operands = (x, weight, self.normal((channels,), 0.05)) if bias else (x, weight)
        return dhc.ops.conv(
            *operands,
            strides=(stride,) * rank,
            dilations=(dilation,) * rank,
            pads_low=pads,
            pads_high=pads,
            groups=groups,
        )

    def deconv(
        self,
        x: Value,
        channels: int,
        kernel: int,
        stride: int,
        padding: int = 0,
        output_padding: int = 0,
        bias: bool = False,
        gain: float = 2.0,
    ) -> Value:
        """A transposed convolution."""
        rank, ins = x.type.rank - 2, x.shape[1]
        fan_in = ins * max(kernel // stride, 1) ** rank
        weight = self.normal((ins, channels, *(kernel,) * rank), (gain / fan_in) ** 0.5)
        operands = (x, weight, self.normal((channels,), 0.05)) if bias else (x, weight)
        return dhc.ops.conv_transpose(
            *operands,
            strides=(stride,) * rank,
            pads_low=(padding,) * rank,
            pads_high=(padding,) * rank,
            output_padding=(output_padding,) * rank,
        )

    def linear(self, x: Value, features: int, bias: bool = True, gain: float = 1.0) -> Value:
        """A product with a weight over the last axis."""
        ins = x.shape[-1]
        y = dhc.ops.matmul(x, self.normal((ins, features), (gain / ins) ** 0.5))
        return y + self.normal((features,), 0.05) if bias else y

    def batch_norm(self, x: Value, scale: float = 1.0, epsilon: float = 1e-5) -> Value:
        """A batch norm with given statistics; `scale` is what its factors lie around."""
        channels = x.shape[1]
        factor = self.uniform((channels,), 0.8 * scale, 1.2 * scale)
        shift = self.normal((channels,), 0.1)
        mean = self.fixed((0.1 * self._rng.standard_normal(channels)).astype(np.float32))
        variance = self.fixed(self._rng.uniform(0.8, 1.2, channels).astype(np.float32))
        return dhc.ops.batch_norm(x, factor, shift, mean, variance, epsilon=epsilon)

    def instance_norm(self, x: Value, affine: bool = False) -> Value:
        """Each channel of each image to mean 0 and variance 1; without `affine` nothing is trained."""
        channels = x.shape[1]
        if affine:
            return dhc.ops.instance_norm(x, self.uniform((channels,), 0.8, 1.2), self.normal((channels,), 0.1))
        return dhc.ops.instance_norm(
            x, self.fixed(np.ones(channels, np.float32)), self.fixed(np.zeros(channels, np.float32))
        )

    def group_norm(self, x: Value, groups: int) -> Value:
        channels = x.shape[1]
        factor, shift = self.uniform((channels,), 0.8, 1.2), self.normal((channels,), 0.1)
        return dhc.ops.group_norm(x, factor, shift, groups=groups)

    def layer_norm(self, x: Value, epsilon: float = 1e-5) -> Value:
        """Over the last axis."""
        width = x.shape[-1]
        factor, shift = self.uniform((width,), 0.8, 1.2), self.normal((width,), 0.1)
        return dhc.ops.layer_norm(x, factor, shift, axis=-1, epsilon=epsilon)

    def prelu(self, x: Value) -> Value:
        """One trained slope for all channels, 0.25 as it is initialised."""
        slope = self._trainable(np.full((1,) * (x.type.rank - 1), 0.25, np.float32))
        return dhc.ops.where(dhc.ops.lt(x, 0.0), slope * x, x)


def max_pool(x: Value, kernel: int = 2, stride: int | None = None, padding: int = 0) -> Value:
    """The largest of each window, by default windows side by side."""
    rank = x.type.rank - 2
    return dhc.ops.max_pool(
        x,
        kernel=(kernel,) * rank,
        strides=(stride or kernel,) * rank,
        pads_low=(padding,) * rank,
        pads_high=(padding,) * rank,
    )


def mean_over_space(x: Value, keepdims: bool = False) -> Value:
    """Global average pooling."""
    return dhc.ops.reduce_mean(x, axes=tuple(range(2, x.type.rank)), keepdims=keepdims)


def upsample(x: Value, size: Sequence[int], mode: str = "linear", coordinate: str = "half_pixel") -> Value:
    """The same image on another grid."""
    return dhc.ops.resize(x, shape=(*x.shape[:2], *size), mode=mode, coordinate=coordinate)
