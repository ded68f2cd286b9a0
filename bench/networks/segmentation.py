"""Networks that give each pixel a class: U-Nets plain and residual, DeepLabV3."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import dhc
from bench.networks.classification import resnet50_features
from bench.networks.net import Net, Value, max_pool, upsample

relu = dhc.ops.relu


def plain_unet(net: Net, channels: Sequence[int], size: int) -> None:
    """Ronneberger et al., MICCAI 2015, padded, with batch norms: two 3×3 convolutions a level."""

    def twice(x: Value, width: int) -> Value:
        for _ in range(2):
            x = relu(net.batch_norm(net.conv(x, width)))
        return x

    x = net.input("image", (1, 1, size, size))
    skips = []
    for width in channels[:-1]:
        x = twice(x, width)
        skips.append(x)
        x = max_pool(x)
    x = twice(x, channels[-1])
    for width, skip in zip(channels[-2::-1], reversed(skips)):
        x = twice(dhc.ops.concat(skip, net.deconv(x, width, 2, 2, bias=True), axis=1), width)
    net.output(net.conv(x, 2, 1, bias=True), "logits")


unet_16_256 = partial(plain_unet, channels=(16, 32, 64, 128, 256), size=256)
unet_64_1024 = partial(plain_unet, channels=(64, 128, 256, 512, 1024), size=256)


def residual_unet(net: Net, shape: Sequence[int], channels: Sequence[int], classes: int, units: int = 2) -> None:
    """Kerfoot et al., STACOM 2018, as MONAI builds it: strided residual units down, transposed convolutions up."""

    def convolution(x: Value, width: int, stride: int = 1) -> Value:
        return net.prelu(net.instance_norm(net.conv(x, width, 3, stride, bias=True)))

    def down(x: Value, width: int, stride: int, bare: bool = False) -> Value:
        y = x
        for unit in range(units):
            y = convolution(y, width, 1 if unit else stride)
        if stride == 1 and x.shape[1] == width:
            return x + y
        return y + net.conv(x, width, 3 if stride > 1 else 1, stride, bias=True, gain=1.0)

    def up(x: Value, width: int, last: bool) -> Value:
        x = net.deconv(x, width, 3, 2, padding=1, output_padding=1, bias=True)
        x = net.prelu(net.instance_norm(x))
        y = net.conv(x, width, 3, bias=True)
        return x + (y if last else net.prelu(net.instance_norm(y)))

    def level(x: Value, depth: int, out: int) -> Value:
        inner = down(x, channels[depth], 2)
        if depth + 2 < len(channels):
            below = level(inner, depth + 1, channels[depth])
        else:
            below = down(inner, channels[depth + 1], 1)
        return up(dhc.ops.concat(inner, below, axis=1), out, last=depth == 0)

    x = net.input("image", (1, 1, *shape))
    net.output(level(x, 0, classes), "logits")


monai_unet2d = partial(residual_unet, shape=(256, 256), channels=(32, 64, 128, 256, 512), classes=2)
monai_unet3d_64 = partial(residual_unet, shape=(64, 64, 64), channels=(16, 32, 64, 128, 256), classes=2)


def deeplab_v3(net: Net) -> None:
    """Chen et al., 2017, over ResNet-50 with output stride 8: pyramid of dilated convolutions."""
    size = 224
    image = net.input("image", (1, 3, size, size))
    x = resnet50_features(net, image, dilated=True)
    parts = [relu(net.batch_norm(net.conv(x, 256, 1)))]
    parts += [relu(net.batch_norm(net.conv(x, 256, 3, dilation=d))) for d in (12, 24, 36)]
    pooled = dhc.ops.reduce_mean(x, axes=(2, 3), keepdims=True)
    pooled = relu(net.batch_norm(net.conv(pooled, 256, 1)))
    parts.append(dhc.ops.broadcast_to(pooled, shape=parts[0].shape))
    x = relu(net.batch_norm(net.conv(dhc.ops.concat(*parts, axis=1), 256, 1)))
    x = relu(net.batch_norm(net.conv(x, 256, 3)))
    net.output(upsample(net.conv(x, 21, 1, bias=True), (size, size)), "logits")
