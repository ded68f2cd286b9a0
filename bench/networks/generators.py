"""Generators of images."""

from __future__ import annotations

import dhc
from bench.networks.net import Net


def dcgan_g64(net: Net) -> None:
    """Radford et al., ICLR 2016: 100 numbers to a 64×64 image in five transposed convolutions."""
    x = net.input("noise", (1, 100, 1, 1))
    for number, width in enumerate((512, 256, 128, 64)):
        x = net.deconv(x, width, 4, 2 if number else 1, padding=1 if number else 0, gain=2.0 if number else 16.0)
        x = dhc.ops.relu(net.batch_norm(x))
    net.output(dhc.ops.tanh(net.deconv(x, 3, 4, 2, padding=1, gain=1.0)), "image")
