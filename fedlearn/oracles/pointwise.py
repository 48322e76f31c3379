"""Activations with their first and second derivatives, and losses as functions of a net's output.

Tensors here are feature-major, [..., units, samples]: the layout in which the matrix products of small batches are
fastest. In a stack of clients a tensor is a *slab*: each client's part is padded to a multiple of 64 entries,
because the last entries of a long tensor go through another code path than the rest, with other last bits. So a
client's bits depend neither on its place in a stack nor on the others in it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Pointwise:
    """An activation f: ``apply`` (z, out) writes f(z), ``pull`` (r, z, a) multiplies r by f'(z).

    a = f(z), of which ``pull`` may make something else. ``slope`` (z) is f'(z), ``curvature`` (z) f''(z).
    """

    name: str
    apply: Callable[[Tensor, Tensor], object]
    pull: Callable[[Tensor, Tensor, Tensor], object]
    curvature: Callable[[Tensor], Tensor]

    def slope(self, z: Tensor) -> Tensor:
        """Return f'(z)."""
        a, r = torch.empty_like(z), torch.ones_like(z)
        self.apply(z, a)
        self.pull(r, z, a)
        return r


def _gelu_curvature(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) * (2 - z.square()) / math.sqrt(2 * math.pi)


def _tanh_gelu_curvature(z: Tensor) -> Tensor:
    k, c = math.sqrt(2 / math.pi), 0.044715       # f = z (1 + t) / 2,  t = tanh(u),  u = k (z + c z^3)
    t = torch.tanh(k * (z + c * z**3))
    du, ddu = k * (1 + 3 * c * z.square()), 6 * k * c * z
    dt = 1 - t.square()
    return dt * du + z / 2 * (dt * ddu - 2 * t * dt * du.square())


def _tanh_curvature(z: Tensor) -> Tensor:
    t = torch.tanh(z)
    return -2 * t * (1 - t.square())


def _sigmoid_curvature(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s) * (1 - 2 * s)


# The sign of a ReLU's output is its slope; two passes in place beat torch's own backward by a third.
RELU = Pointwise("relu", lambda z, out: torch.clamp_min(z, 0, out=out), lambda r, z, a: r.mul_(a.sign_()),
                 torch.zeros_like)
TANH = Pointwise("tanh", lambda z, out: torch.tanh(z, out=out),
                 lambda r, z, a: aten.tanh_backward.grad_input(r, a, grad_input=r), _tanh_curvature)
SIGMOID = Pointwise("sigmoid", lambda z, out: torch.sigmoid(z, out=out),
                    lambda r, z, a: aten.sigmoid_backward.grad_input(r, a, grad_input=r), _sigmoid_curvature)
GELU = Pointwise("gelu", lambda z, out: aten.gelu.out(z, out=out),
                 lambda r, z, a: aten.gelu_backward.grad_input(r, z, grad_input=r), _gelu_curvature)
TANH_GELU = Pointwise(
    "gelu (tanh)", lambda z, out: aten.gelu.out(z, approximate="tanh", out=out),
    lambda r, z, a: aten.gelu_backward.grad_input(r, z, approximate="tanh", grad_input=r), _tanh_gelu_curvature)
IDENTITY = Pointwise("none", lambda z, out: out.copy_(z), lambda r, z, a: r, torch.zeros_like)


class Slab(NamedTuple):
    """``view`` [..., units, samples] of ``flat``, which has the padding too; the same memory."""

    flat: Tensor
    view: Tensor


class Target(NamedTuple):
    """What the loss of a mini-batch needs besides the output.

    ``minus`` [..., units, samples] is minus the weighted target, ``weight`` that of an output's loss in the mean and
    ``inverse`` one over it: numbers, or tensors [clients, 1, samples] that are 0 for padding.
    """

    minus: Tensor
    weight: float | Tensor
    inverse: float | Tensor


class Loss(ABC):
    """A loss of ``units`` outputs z whose derivative is weight (mean(z) - target).

    ``entries`` of a sample are averaged over besides the samples.
    """

    def __init__(self, units: int) -> None:
        self.units = self.entries = units

    @abstractmethod
    def encode(self, y: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        """Return the targets [units, n] of n labels, times ``scale``, in new memory."""

    @abstractmethod
    def first(self, z: Slab, t: Target, r: Slab, spare: Slab, total: Tensor) -> None:
        """Write the derivative in z to r and add the samples' losses to ``total`` [..., units, samples]."""

    @abstractmethod
    def second(self, z: Tensor, rz: Tensor, weight: float | Tensor) -> Tensor:
        """Return the change of the derivative along the change rz of z."""


def _residual(minus: Tensor, mean: Tensor, weight: float | Tensor, out: Tensor) -> None:
    if isinstance(weight, float):
        torch.add(minus, mean, alpha=weight, out=out)
    else:
        torch.addcmul(minus, mean, weight, out=out)


class CrossEntropy(Loss):
    """Softmax cross-entropy of class indices, through the log of the softmax: stable at any size of z."""

    def __init__(self, units: int) -> None:
        super().__init__(units)
        self.entries = 1
        self.table = torch.empty(0)

    def encode(self, y: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        if self.table.dtype != dtype or self.table.device != y.device or not len(self.table):
            self.table = torch.eye(self.units, dtype=dtype, device=y.device)
        try:
            return self.table.index_select(1, y.reshape(-1)).mul_(scale)
        except (IndexError, RuntimeError) as e:
            raise ValueError(f"found labels from {int(y.min())} to {int(y.max())}; allowed: 0 to {self.units - 1} "
                             "with oracle=dense; oracle=autograd ignores samples with label -100") from e

    def first(self, z: Slab, t: Target, r: Slab, spare: Slab, total: Tensor) -> None:
        torch.log_softmax(z.view, -2, out=spare.view)
        total.addcmul_(spare.view, t.minus)
        if isinstance(t.weight, float):
            torch.exp(spare.flat, out=spare.flat)
        else:  # softmax has the same bits wherever in a tensor a sample stands
            torch.softmax(z.view, -2, out=spare.view)
        _residual(t.minus, spare.view, t.weight, r.view)

    def second(self, z: Tensor, rz: Tensor, weight: float | Tensor) -> Tensor:
        p = torch.softmax(z, -2)
        return (rz - (p * rz).sum(-2, keepdim=True)) * p * weight


class BinaryCrossEntropy(Loss):
    """Logistic loss of labels in {0, 1}."""

    def encode(self, y: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        return y.reshape(-1, self.units).to(dtype).t() * scale

    def first(self, z: Slab, t: Target, r: Slab, spare: Slab, total: Tensor) -> None:
        # log(1 + e^z) = max(z, 0) + log(1 + e^-|z|): no cancellation against the label's z.
        total.add_(z.view.clamp_min(0).mul_(t.weight).addcmul_(z.view, t.minus))
        total.add_(z.view.abs().neg_().exp_().log1p_().mul_(t.weight))
        torch.sigmoid(z.flat, out=spare.flat)
        _residual(t.minus, spare.view, t.weight, r.view)

    def second(self, z: Tensor, rz: Tensor, weight: float | Tensor) -> Tensor:
        return torch.sigmoid(z) * torch.sigmoid(-z) * rz * weight


class Squared(Loss):
    """Half the squared error."""

    def encode(self, y: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        return y.reshape(-1, self.units).to(dtype).t() * scale

    def first(self, z: Slab, t: Target, r: Slab, spare: Slab, total: Tensor) -> None:
        _residual(t.minus, z.view, t.weight, r.view)
        total.addcmul_(r.view, r.view * t.inverse, value=0.5)

    def second(self, z: Tensor, rz: Tensor, weight: float | Tensor) -> Tensor:
        return rz * weight


LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy, "binary_cross_entropy": BinaryCrossEntropy, "squared": Squared}
