"""The gradient of a whole model as one vector, written part by part during a backward pass and never zeroed.

Autograd makes a tensor for each parameter and then adds it to the gradient that is there. Here it is copied to its
place as soon as it is made, and let go; what belongs to a linear layer in nn.Sequential is made there: neither the
tensor, nor the zeroing before it, nor the second pass is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..vectors import views
from .layers import DoesNotFit, steps


class FlatGradient:
    """``flat`` [P] holds the gradients of ``parameters``, in their order, after each ``backward``."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        first = parameters[0]
        self.flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        self.parts = views(self.flat, [p.shape for p in parameters])
        self.missing: set[int] = set()      # parts that the backward pass has not reached yet
        # The hooks, which belong to the parameters, know this object and it does not know the parameters: no cycle.
        for i, p in enumerate(parameters):
            p.register_post_accumulate_grad_hook(partial(self.take, i))

    def backward(self, loss: Tensor) -> None:
        """Write the gradient of a loss."""
        self.missing = set(range(len(self.parts)))
        loss.backward()
        for i in self.missing:
            self.parts[i].zero_()

    def take(self, i: int, p: Tensor) -> None:
        """Move what autograd made of parameter i to its place."""
        if p.grad is None:      # what there was went straight to its place
            return
        if self._first(i):
            self.parts[i].copy_(p.grad.to_dense())
        else:
            self.parts[i].add_(p.grad)
        p.grad = None

    def make(self, weight: int, bias: int | None, rows: Tensor, samples: Tensor) -> None:
        """Make a linear layer's gradients at their places from those of its outputs [n, out] and its inputs [n, in]."""
        into = self.parts[weight]
        torch.addmm(into, rows.t(), samples, beta=0 if self._first(weight) else 1, out=into)
        if bias is None:
            return
        if self._first(bias):
            torch.sum(rows, 0, out=self.parts[bias])
        else:
            self.parts[bias] += rows.sum(0)

    def _first(self, i: int) -> bool:
        """Return whether part i is reached for the first time: another backward pass may run within this one."""
        if i not in self.missing:
            return False
        self.missing.discard(i)
        return True


class Straight(torch.autograd.Function):
    """A linear layer with its parameters' numbers in a ``FlatGradient``, where a backward pass makes its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gradient: FlatGradient,
                places: tuple[int, int | None]) -> Tensor:
        ctx.gradient, ctx.places = gradient, places
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (g,) = grads
        rows, samples = g.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
        back = g.matmul(weight) if ctx.needs_input_grad[0] else None
        if torch.is_grad_enabled():     # it is to be differentiated again, as in a penalty on a gradient
            return back, rows.t() @ samples, rows.sum(0) if ctx.needs_input_grad[2] else None, None, None
        ctx.gradient.make(*ctx.places, rows, samples)
        return back, None, None, None, None


def linears(model: nn.Module) -> list[nn.Linear]:
    """Return the trained Linear layers in nested nn.Sequential: none where hooks might look at what they do."""
    try:
        layers = [module for _, module in steps(model)]
    except DoesNotFit:
        return []
    return [module for module in layers if type(module) is nn.Linear
            and all(p.requires_grad for p in module.parameters())]
