"""Transformers and recurrent architectures of medical imaging and reports, small, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ViT(nn.Module):
    """Patches, class token, position embedding, encoder layers with torch's own attention."""

    def __init__(self, size: int = 16, patch: int = 4, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attend = nn.ModuleList(nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.position
        for i in range(2):
            y = self.norms[2 * i](h)
            h = h + self.attend[i](y, y, y, need_weights=False)[0]
            h = h + self.mlps[i](self.norms[2 * i + 1](h))
        return self.head(h[:, 0])


class Swin(nn.Module):
    """Shifted windows: roll, window partition, attention with a relative bias and a mask, and all the way back."""

    def __init__(self, size: int = 8, window: int = 4, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.size, self.window, self.width, self.heads = size, window, width, heads
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.project = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.bias = nn.Parameter(torch.randn(heads, (2 * window - 1) ** 2) * 0.1)
        axis = torch.arange(window)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
        relative = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("relative_index", relative[0] * (2 * window - 1) + relative[1])
        shift = window // 2
        region = torch.zeros(size, size)
        for i, rows in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
            for j, columns in enumerate((slice(0, -window), slice(-window, -shift), slice(-shift, None))):
                region[rows, columns] = 3 * i + j
        cut = self.partition(region[None, :, :, None]).squeeze(-1)
        self.register_buffer("mask", (cut[:, None, :] != cut[:, :, None]).float() * -100.0)
        self.head = nn.Linear(width, 3)

    def partition(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        k = self.window
        return x.view(b, h // k, k, w // k, k, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, k * k, c)

    def attention(self, x: Tensor, layer: int, mask: Tensor | None) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv[layer](x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias[:, self.relative_index.view(-1)].view(1, self.heads, t, t)
        if mask is not None:
            windows = mask.shape[0]
            bias = (bias + mask[:, None]).repeat(n // windows, 1, 1, 1)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.project[layer](y.transpose(1, 2).reshape(n, t, c))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).permute(0, 2, 3, 1)
        b, s, k = h.shape[0], self.size, self.window
        for layer, shift in enumerate((0, k // 2)):
            y = self.norms[layer](h)
            if shift:
                y = torch.roll(y, (-shift, -shift), (1, 2))
            y = self.attention(self.partition(y), layer, self.mask if shift else None)
            y = y.view(b, s // k, s // k, k, k, self.width).permute(0, 1, 3, 2, 4, 5).reshape(b, s, s, self.width)
            if shift:
                y = torch.roll(y, (shift, shift), (1, 2))
            h = h + y
        return self.head(h.mean((1, 2)))


class Lstm(nn.Module):
    """Two bidirectional layers over a signal, last and mean state."""

    def __init__(self, features: int = 3, width: int = 5) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(4 * width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (_, cell) = self.lstm(x)
        return self.head(torch.cat([y[:, -1], y.mean(1)], -1)), cell


class CaptionStep(nn.Module):
    """One step of a report writer: image features and the words so far to the next word's scores."""

    def __init__(self, words: int = 11, width: int = 6) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1))
        )
        self.words = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, words)

    def forward(self, image: Tensor, words: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image_features = self.encoder(image).flatten(1)
        steps = torch.cat([image_features[:, None], self.words(words)], 1)
        y, (hidden, cell) = self.lstm(steps, (hidden, cell))
        return functional.log_softmax(self.head(y), -1), hidden, cell
