"""Classifiers of images: VGG, ResNet, DenseNet, MobileNetV2, EfficientNet."""

from __future__ import annotations

import math

import dhc
from bench.networks.net import Net, Value, max_pool, mean_over_space

relu = dhc.ops.relu


def vgg16(net: Net) -> None:
    """Configuration D of Simonyan and Zisserman, 2014."""
    x = net.input("image", (1, 3, 224, 224))
    for channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            x = relu(net.conv(x, channels, bias=True))
        x = max_pool(x)
    x = x.reshape(1, -1)
    for _ in range(2):
        x = relu(net.linear(x, 4096, gain=2.0))
    net.output(net.linear(x, 1000), "scores")


def resnet18(net: Net) -> None:
    """He et al., CVPR 2016."""
    x = stem(net, net.input("image", (1, 3, 224, 224)))
    for stage, channels in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = _basic(net, x, channels, stride=2 if stage and not block else 1)
    net.output(net.linear(mean_over_space(x), 1000), "scores")


def resnet50(net: Net) -> None:
    """He et al., CVPR 2016, with the stride in the 3×3 convolution."""
    x = resnet50_features(net, net.input("image", (1, 3, 224, 224)))
    net.output(net.linear(mean_over_space(x), 1000), "scores")


def resnet50_features(net: Net, x: Value, dilated: bool = False) -> Value:
    """The trunk; `dilated`: the last two stages keep the resolution and widen their kernels instead."""
    x = stem(net, x)
    for stage, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            dilation = 1
            if dilated and stage >= 2:
                dilation = 2 ** (stage - 1) if block else 2 ** (stage - 2)
                stride = 1
            x = _bottleneck(net, x, channels, stride, dilation)
    return x


def stem(net: Net, x: Value) -> Value:
    return max_pool(relu(net.batch_norm(net.conv(x, 64, 7, stride=2))), 3, stride=2, padding=1)


def _basic(net: Net, x: Value, channels: int, stride: int) -> Value:
    y = relu(net.batch_norm(net.conv(x, channels, 3, stride)))
    y = net.batch_norm(net.conv(y, channels, 3), scale=0.5)
    return relu(y + _shortcut(net, x, channels, stride))


def _bottleneck(net: Net, x: Value, channels: int, stride: int, dilation: int) -> Value:
    y = relu(net.batch_norm(net.conv(x, channels, 1)))
    y = relu(net.batch_norm(net.conv(y, channels, 3, stride, dilation=dilation)))
    y = net.batch_norm(net.conv(y, 4 * channels, 1), scale=0.5)
    return relu(y + _shortcut(net, x, 4 * channels, stride))


def _shortcut(net: Net, x: Value, channels: int, stride: int) -> Value:
    if stride == 1 and x.shape[1] == channels:
        return x
    return net.batch_norm(net.conv(x, channels, 1, stride, gain=1.0))


def densenet121(net: Net) -> None:
    """Huang et al., CVPR 2017: growth 32, blocks of 6, 12, 24, 16."""
    x = stem(net, net.input("image", (1, 3, 224, 224)))
    for stage, layers in enumerate((6, 12, 24, 16)):
        if stage:
            x = net.conv(relu(net.batch_norm(x)), x.shape[1] // 2, 1)
            x = dhc.ops.avg_pool(x, kernel=(2, 2), strides=(2, 2))
        for _ in range(layers):
            y = net.conv(relu(net.batch_norm(x)), 128, 1)
            y = net.conv(relu(net.batch_norm(y)), 32, 3)
            x = dhc.ops.concat(x, y, axis=1)
    net.output(net.linear(mean_over_space(relu(net.batch_norm(x))), 1000), "scores")


def mobilenet_v2(net: Net) -> None:
    """Sandler et al., CVPR 2018, width 1."""

    def relu6(x: Value) -> Value:
        return dhc.ops.clamp(x, 0.0, 6.0)

    x = net.input("image", (1, 3, 224, 224))
    x = relu6(net.batch_norm(net.conv(x, 32, 3, stride=2)))
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, channels, blocks, first_stride in settings:
        for block in range(blocks):
            stride, before = (1 if block else first_stride), x
            hidden = x.shape[1] * expansion
            if expansion != 1:
                x = relu6(net.batch_norm(net.conv(x, hidden, 1)))
            x = relu6(net.batch_norm(net.conv(x, hidden, 3, stride, groups=hidden)))
            x = net.batch_norm(net.conv(x, channels, 1, gain=1.0))
            if stride == 1 and before.shape[1] == channels:
                x = before + x
    x = relu6(net.batch_norm(net.conv(x, 1280, 1)))
    net.output(net.linear(mean_over_space(x), 1000), "scores")


def efficientnet_b0(net: Net) -> None:
    """Tan and Le, ICML 2019."""
    silu = dhc.ops.silu
    x = net.input("image", (1, 3, 224, 224))
    x = silu(net.batch_norm(net.conv(x, 32, 3, stride=2, gain=1.0)))
    settings = (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )  # fmt: skip
    for expansion, kernel, first_stride, channels, blocks in settings:
        for block in range(blocks):
            stride, before = (1 if block else first_stride), x
            hidden = x.shape[1] * expansion
            if expansion != 1:
                x = silu(net.batch_norm(net.conv(x, hidden, 1, gain=1.0)))
            x = silu(net.batch_norm(net.conv(x, hidden, kernel, stride, groups=hidden, gain=2.0)))
            gate = mean_over_space(x, keepdims=True)
            gate = silu(net.conv(gate, math.floor(before.shape[1] / 4), 1, bias=True))
            x = x * dhc.ops.sigmoid(net.conv(gate, hidden, 1, bias=True))
            x = net.batch_norm(net.conv(x, channels, 1, gain=8.0), scale=0.5 if block else 1.0)
            if stride == 1 and before.shape[1] == channels:
                x = before + x
    x = silu(net.batch_norm(net.conv(x, 1280, 1, gain=1.0)))
    net.output(net.linear(mean_over_space(x), 1000), "scores")
