"""Softmax regression (multinomial logistic regression): the convex model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Softmax:
    """One linear layer from the flattened sample to the classes."""

    def build(self, in_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return a module [n, *in_shape] -> logits [n, classes]."""
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), classes))
