"""Convolutional architectures of medical imaging, small, in plain torch: what exporters make of them is the test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def conv_bn(rank: int, cin: int, cout: int, size: int = 3, stride: int = 1, **kwargs: Any) -> nn.Sequential:
    padding = kwargs.pop("padding", size // 2)
    convolution = CONV[rank](cin, cout, size, stride, padding, bias=False, **kwargs)
    return nn.Sequential(convolution, NORM[rank](cout), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Two levels down and up with skips; dropout, sigmoid."""

    def __init__(self, rank: int, width: int = 4) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv_bn(rank, 1, width), conv_bn(rank, width, width))
        self.down2 = nn.Sequential(conv_bn(rank, width, 2 * width), nn.Dropout(0.3))
        self.bottom = conv_bn(rank, 2 * width, 4 * width)
        self.pool = POOL[rank](2)
        self.up2 = UP[rank](4 * width, 2 * width, 2, stride=2)
        self.join2 = conv_bn(rank, 4 * width, 2 * width)
        self.up1 = UP[rank](2 * width, width, 2, stride=2)
        self.join1 = conv_bn(rank, 2 * width, width)
        self.head = CONV[rank](width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        d = self.join2(torch.cat([self.up2(c), b], dim=1))
        return torch.sigmoid(self.head(self.join1(torch.cat([self.up1(d), a], dim=1))))


class BasicBlock(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(2, cin, cout, 3, stride)
        self.conv2 = nn.Sequential(nn.Conv2d(cout, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout))
        self.short = nn.Identity()
        if stride != 1 or cin != cout:
            self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(self.conv1(x)) + self.short(x))


class ResNet(nn.Module):
    """ResNet-18's stem, four stages of two blocks and head, narrow."""

    def __init__(self, width: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(2, 3, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        blocks = []
        for stage in range(4):
            cin, cout = width * 2 ** max(stage - 1, 0), width * 2**stage
            blocks += [BasicBlock(cin, cout, 1 if stage == 0 else 2), BasicBlock(cout, cout, 1)]
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(width * 8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(self.stages(self.stem(x)), 1), 1))


class DenseNet(nn.Module):
    """Dense blocks (norm, ReLU, 1x1, 3x3, all earlier maps joined) and transitions."""

    def __init__(self, growth: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.stem = conv_bn(2, 1, 8, 3, 2)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        width = 8
        for _ in range(2):
            layers = nn.ModuleList()
            for _ in range(3):
                layers.append(
                    nn.Sequential(
                        nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * growth, 1, bias=False),
                        nn.BatchNorm2d(2 * growth), nn.ReLU(), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
                    )
                )  # fmt: skip
                width += growth
            self.blocks.append(layers)
            self.transitions.append(
                nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2))
            )
            width //= 2
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layers, transition in zip(self.blocks, self.transitions):
            maps = [x]
            for layer in layers:
                maps.append(layer(torch.cat(maps, 1)))
            x = transition(torch.cat(maps, 1))
        return self.head(functional.relu(self.norm(x)).mean(dim=(2, 3)))


class MBConv(nn.Module):
    """Expansion, depthwise convolution, squeeze and excitation, projection."""

    def __init__(self, cin: int, cout: int, size: int, stride: int) -> None:
        super().__init__()
        mid = 4 * cin
        self.expand = nn.Sequential(nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.SiLU())
        self.depth = nn.Sequential(
            nn.Conv2d(mid, mid, size, stride, size // 2, groups=mid, bias=False), nn.BatchNorm2d(mid), nn.SiLU()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(mid, cin, 1), nn.SiLU(), nn.Conv2d(cin, mid, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(mid, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.keep = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        y = self.project(y * self.squeeze(y))
        return x + y if self.keep else y


class EfficientNet(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU())
        self.blocks = nn.Sequential(MBConv(4, 4, 3, 1), MBConv(4, 6, 5, 2), MBConv(6, 6, 5, 1), MBConv(6, 8, 3, 2))
        self.head = nn.Sequential(nn.Conv2d(8, 16, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.classify = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, classes), nn.Softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.head(self.blocks(self.stem(x))))


class DcganGenerator(nn.Module):
    """Transposed convolutions from a latent vector to an image."""

    def __init__(self, latent: int = 8, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent, 4 * width, 4, 1, 0, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU(True),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(True),
            nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(width, 1, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class DeepLab(nn.Module):
    """Strided and dilated trunk, atrous spatial pyramid with image pooling, bilinear resizing to the input's size."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            conv_bn(2, 3, 4, 3, 2), conv_bn(2, 4, 8, 3, 2), conv_bn(2, 8, 8, padding=2, dilation=2)
        )
        self.branches = nn.ModuleList([conv_bn(2, 8, 4, 1)])
        self.branches.extend(conv_bn(2, 8, 4, 3, padding=rate, dilation=rate) for rate in (2, 4))
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU())
        self.join = conv_bn(2, 16, 8, 1)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        maps = [branch(y) for branch in self.branches]
        maps.append(functional.interpolate(self.image(y), size=y.shape[-2:], mode="bilinear", align_corners=False))
        y = self.head(self.join(torch.cat(maps, 1)))
        return functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
