"""Networks on volumes: SegResNet, V-Net, MeshNet."""

from __future__ import annotations

import dhc
from bench.networks.net import Net, Value, upsample

relu = dhc.ops.relu


def segresnet3d(net: Net) -> None:
    """Myronenko, BrainLes 2018, without the autoencoder, in the size that MONAI builds by default."""

    def block(x: Value) -> Value:
        width = x.shape[1]
        y = net.conv(relu(net.group_norm(x, 8)), width)
        return x + net.conv(relu(net.group_norm(y, 8)), width)

    width = 8
    x = net.conv(net.input("image", (1, 1, 96, 96, 96)), width)
    skips = []
    for level, blocks in enumerate((1, 2, 2, 4)):
        if level:
            width *= 2
            x = net.conv(x, width, 3, stride=2)
        for _ in range(blocks):
            x = block(x)
        skips.append(x)
    for skip in skips[-2::-1]:
        x = net.conv(x, skip.shape[1], 1)
        x = block(upsample(x, skip.shape[2:]) + skip)
    x = relu(net.group_norm(x, 8))
    net.output(net.conv(x, 2, 1, bias=True), "logits")


def vnet3d(net: Net) -> None:
    """Milletari et al., 3DV 2016, as MONAI builds it: 5×5×5 convolutions, ELU."""
    elu = dhc.ops.elu

    def chain(x: Value, convolutions: int) -> Value:
        for _ in range(convolutions):
            x = elu(net.batch_norm(net.conv(x, x.shape[1], 5, bias=True)))
        return x

    def down(x: Value, convolutions: int) -> Value:
        x = elu(net.batch_norm(net.conv(x, 2 * x.shape[1], 2, stride=2, padding=0, bias=True)))
        return elu(chain(x, convolutions) + x)

    def up(x: Value, skip: Value, width: int, convolutions: int) -> Value:
        x = elu(net.batch_norm(net.deconv(x, width // 2, 2, 2, bias=True)))
        x = dhc.ops.concat(x, skip, axis=1)
        return elu(chain(x, convolutions) + x)

    image = net.input("image", (1, 1, 64, 64, 64))
    first = net.batch_norm(net.conv(image, 16, 5, bias=True))
    skips = [elu(first + dhc.ops.concat(*[image] * 16, axis=1))]
    for convolutions in (1, 2, 3, 2):
        skips.append(down(skips[-1], convolutions))
    x = skips.pop()
    for width, convolutions in ((256, 2), (128, 2), (64, 1), (32, 1)):
        x = up(x, skips.pop(), width, convolutions)
    x = elu(net.batch_norm(net.conv(x, 2, 5, bias=True)))
    net.output(net.conv(x, 2, 1, bias=True), "logits")


def meshnet3d(net: Net) -> None:
    """Fedorov et al., IJCNN 2017, as brainchop has it: dilated 3×3×3 convolutions of few channels."""
    x = net.input("volume", (1, 1, 64, 64, 64))
    for dilation in (1, 2, 4, 8, 16, 8, 4, 2, 1):
        x = relu(net.batch_norm(net.conv(x, 5, 3, dilation=dilation, bias=True)))
    net.output(net.conv(x, 3, 1, bias=True), "logits")
