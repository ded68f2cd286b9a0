"""Transformers over images: ViT, Swin-UNETR."""

from __future__ import annotations

from functools import cache

import numpy as np

import dhc
from bench.networks.net import Net, Value


def vit_s16(net: Net) -> None:
    """Dosovitskiy et al., ICLR 2021; small: 12 blocks of width 384 with 6 heads, patches of 16."""
    width = 384
    x = net.conv(net.input("image", (1, 3, 224, 224)), width, 16, stride=16, padding=0, bias=True, gain=1.0)
    x = x.reshape(1, width, -1).transpose(0, 2, 1)
    x = dhc.ops.concat(net.normal((1, 1, width), 0.5), x, axis=1) + net.normal((1, 197, width), 0.5)
    for _ in range(12):
        x = x + attention(net, net.layer_norm(x, 1e-6), heads=6)
        x = x + mlp(net, net.layer_norm(x, 1e-6), 4 * width)
    x = net.layer_norm(x, 1e-6)
    net.output(net.linear(x[:, 0], 1000), "scores")


def mlp(net: Net, x: Value, hidden: int) -> Value:
    return net.linear(dhc.ops.gelu(net.linear(x, hidden)), x.shape[-1])


def attention(net: Net, x: Value, heads: int, bias: Value | None = None, mask: np.ndarray | None = None) -> Value:
    """Self-attention over x[batch, tokens, width], written with matrix products as exporters do.

    Args:
        net: where its weights come from.
        x: the tokens.
        heads: number of heads.
        bias: added to the scores, [heads, tokens, tokens].
        mask: added to the scores of each window, [windows, tokens, tokens].
    """
    batch, tokens, width = x.shape
    depth = width // heads
    triple = net.linear(x, 3 * width).reshape(batch, tokens, 3, heads, depth).transpose(2, 0, 3, 1, 4)
    q, k, v = (triple[i] for i in range(3))
    scores = dhc.ops.matmul(q * depth**-0.5, k.transpose(0, 1, 3, 2))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores + net.fixed(mask[:, None])
    mixed = dhc.ops.matmul(dhc.ops.softmax(scores, axis=-1), v)
    return net.linear(mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, width), width)


# ---- Swin-UNETR ------------------------------------------------------------------------------------------------------

WINDOW = 7


def swinunetr2d(net: Net) -> None:
    """Hatamizadeh et al., BrainLes 2021, on images: Swin encoder of width 24, residual blocks, transposed up."""
    width, size = 24, 256
    image = net.input("image", (1, 1, size, size))
    x = net.conv(image, width, 2, stride=2, padding=0, bias=True, gain=1.0)
    levels = [x]
    for heads in (3, 6, 12, 24):
        x = _merge(net, _stage(net, x, heads))
        levels.append(x)
    hidden = [_plain_norm(net, level) for level in levels]
    skips = [_block(net, image, width), _block(net, hidden[0], width)]
    skips += [_block(net, hidden[1], 2 * width), _block(net, hidden[2], 4 * width)]
    x = _block(net, hidden[4], 16 * width)
    for skip, channels in zip((hidden[3], *reversed(skips)), (8, 4, 2, 1, 1)):
        x = net.deconv(x, channels * width, 2, 2, gain=1.0)
        x = _block(net, dhc.ops.concat(x, skip, axis=1), channels * width)
    net.output(net.conv(x, 2, 1, bias=True), "logits")


def _block(net: Net, x: Value, channels: int) -> Value:
    """Two convolutions with instance norms and a shortcut."""
    y = dhc.ops.leaky_relu(net.instance_norm(net.conv(x, channels), affine=False), alpha=0.01)
    y = net.instance_norm(net.conv(y, channels), affine=False)
    if x.shape[1] != channels:
        x = net.instance_norm(net.conv(x, channels, 1), affine=False)
    return dhc.ops.leaky_relu(y + x, alpha=0.01)


def _plain_norm(net: Net, x: Value) -> Value:
    """Over the channels, without weights."""
    width = x.shape[1]
    ones, zeros = net.fixed(np.ones(width, np.float32)), net.fixed(np.zeros(width, np.float32))
    return dhc.ops.layer_norm(x.transpose(0, 2, 3, 1), ones, zeros, axis=-1).transpose(0, 3, 1, 2)


def _stage(net: Net, x: Value, heads: int) -> Value:
    """Two blocks of attention in windows, the second with shifted windows; channels last inside and out."""
    x = x.transpose(0, 2, 3, 1)
    for shifted in (False, True):
        x = x + _window_attention(net, net.layer_norm(x), heads, shifted)
        x = x + mlp(net, net.layer_norm(x), 4 * x.shape[-1])
    return x


def _window_attention(net: Net, x: Value, heads: int, shifted: bool) -> Value:
    _, size, _, width = x.shape
    window = min(WINDOW, size)
    shift = window // 2 if shifted and window < size else 0
    missing = -size % window
    padded = size + missing
    if missing:
        x = dhc.ops.pad(x, 0.0, low=(0, 0, 0, 0), high=(0, missing, missing, 0))
    if shift:
        x = _roll(x, shift)
    count = padded // window
    tokens = x.reshape(1, count, window, count, window, width).transpose(0, 1, 3, 2, 4, 5)
    tokens = tokens.reshape(count * count, window * window, width)
    table = net.normal(((2 * WINDOW - 1) ** 2, heads), 0.02)
    bias = dhc.ops.gather(table, net.fixed(_relative(window).reshape(-1)), axis=0)
    bias = bias.reshape(window**2, window**2, heads).transpose(2, 0, 1)
    mask = _shift_mask(padded, window, shift) if shift else None
    tokens = attention(net, tokens, heads, bias, mask)
    x = tokens.reshape(1, count, count, window, window, width).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(1, padded, padded, width)
    if shift:
        x = _roll(x, padded - shift)
    return x[:, :size, :size] if missing else x


def _roll(x: Value, by: int) -> Value:
    """Rows and columns moved to the front by `by`, what leaves comes back at the end."""
    x = dhc.ops.concat(x[:, by:], x[:, :by], axis=1)
    return dhc.ops.concat(x[:, :, by:], x[:, :, :by], axis=2)


@cache
def _relative(window: int) -> np.ndarray:
    """Index of the distance of each pair of positions of a window in the table of biases."""
    grid = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    distance = grid[:, :, None] - grid[:, None, :] + WINDOW - 1
    return distance[0] * (2 * WINDOW - 1) + distance[1]


def _shift_mask(size: int, window: int, shift: int) -> np.ndarray:
    """-100 between positions that only the roll has brought into one window."""
    part = np.zeros(size, np.int64)
    part[size - window : size - shift], part[size - shift :] = 1, 2
    area = part[:, None] * 3 + part[None]
    count = size // window
    tokens = area.reshape(count, window, count, window).transpose(0, 2, 1, 3).reshape(count * count, window * window)
    return np.where(tokens[:, :, None] != tokens[:, None, :], np.float32(-100), np.float32(0))


def _merge(net: Net, x: Value) -> Value:
    """Each 2×2 of positions to one with twice the channels; channels come first in the result."""
    parts = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    y = net.linear(net.layer_norm(dhc.ops.concat(*parts, axis=3)), 2 * x.shape[-1], bias=False)
    return y.transpose(0, 3, 1, 2)
