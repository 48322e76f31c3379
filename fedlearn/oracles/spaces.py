"""The memory of the dense oracle: views of a model's layers, and buffers for a mini-batch's activations."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .pointwise import Slab


class Weights(NamedTuple):
    """A layer's views: ``W`` [..., out, in], ``b`` [..., out, 1] or None, and the transpose of W (none of layer 0)."""

    W: Tensor
    b: Tensor | None
    Wt: Tensor | None


class Space(NamedTuple):
    """Buffers of a mini-batch's shape, by layer; ``at`` are the activations transposed."""

    z: list[Slab]
    a: list[Slab]
    at: list[Tensor]
    r: list[Slab]
    spare: Slab
    ones: Tensor
    gradient: Tensor
    views: list[Weights]
