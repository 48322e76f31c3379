"""Multi-layer perceptron; with width 200 and depth 2 the "2NN" of McMahan et al., AISTATS 2017."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from ..errors import ConfigError, in_range, one_of

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}


@dataclass(frozen=True)
class MLP:
    """``depth`` hidden layers of ``width`` units each."""

    width: int = 64
    depth: int = 1
    activation: str = "relu"

    def __post_init__(self) -> None:
        in_range("model.width", self.width, least=1)
        in_range("model.depth", self.depth, least=1)
        if self.activation not in ACTIVATIONS:
            raise ConfigError("model.activation", self.activation, one_of(ACTIVATIONS, self.activation))

    def build(self, in_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return a module [n, *in_shape] -> logits [n, classes]."""
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(in_shape)
        for _ in range(self.depth):
            layers += [nn.Linear(inputs, self.width), ACTIVATIONS[self.activation]()]
            inputs = self.width
        return nn.Sequential(*layers, nn.Linear(inputs, classes))
