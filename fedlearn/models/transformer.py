"""A small causal transformer.

Vaswani et al.: Attention Is All You Need, NeurIPS 2017; decoder only, with the normalisation before
each part (Xiong et al., ICML 2020), learned positions, no dropout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, in_range
from .check import require_shape


@dataclass(frozen=True)
class Transformer:
    """``depth`` blocks of ``width`` dimensions with ``heads`` attention heads."""

    width: int = 64
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        in_range("model.width", self.width, least=1)
        in_range("model.depth", self.depth, least=1)
        in_range("model.heads", self.heads, least=1)
        if self.width % self.heads:
            raise ConfigError("model.heads", self.heads, f"a divisor of model.width={self.width}")

    def build(self, in_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return a module: tokens int64 [n, L] in 0 to classes - 1 -> logits [n, L, classes].

        Raises:
            ModelError: if the samples are not sequences.
        """
        require_shape("transformer", in_shape, len(in_shape) == 1, "token sequences [length]")
        return Decoder(classes, in_shape[0], self.width, self.depth, self.heads)


class Decoder(nn.Module):
    """Embed tokens and positions, attend to what came before, predict at every position."""

    def __init__(self, classes: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class Block(nn.Module):
    """Causal self-attention and a perceptron, each beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.attend(self.norm1(x)))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def attend(self, x: Tensor) -> Tensor:
        """Return [n, L, width] of [n, L, width].

        Written out: PyTorch's fused attention has no second derivative, which Hessian-vector
        products need.
        """
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).reshape(n, length, width)
