"""The autograd oracle: any ``nn.Module``, on flat views.

The parameters are made views of the very vector that the algorithm works on, and their gradients
views of one flat buffer. So nothing of the model's size is copied or allocated at a step: the
backward pass writes where ``grad`` returns from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Vec
from ..vectors import trainable, views

FULL_BATCH = 1000   # samples at a time in a pass over a client's whole data


class Autograd:
    """One client at a time; ``store`` has ``sizes`` and ``batch(client, index)``.

    With ``precision`` bf16 the net computes in bfloat16 where autocast thinks that safe; parameters and gradients
    stay float32, and so does the loss.
    """

    stacks = False

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], store: Any,
                 prepare: Callable[[Tensor], Tensor], precision: str = "float32") -> None:
        self.precision = precision
        self.model, self.criterion, self.store, self.prepare = model, loss, store, prepare
        self.parameters = [p for _, p in trainable(model)]
        self.shapes = [p.shape for p in self.parameters]
        first = self.parameters[0]
        size = sum(p.numel() for p in self.parameters)
        self.gradient = torch.zeros(size, dtype=first.dtype, device=first.device)
        for p, g in zip(self.parameters, views(self.gradient, self.shapes), strict=True):
            p.grad = g
        self.buffers = [(module, name, first.detach().clone()) for module in model.modules()
                        for name, first in module._buffers.items() if first is not None]
        self.bound: Tensor | None = None
        self.client = -1
        self.batch: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self.loss, self.calls = self.gradient.new_zeros(1), 0
        model.train()

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        low = ", bfloat16 with float32 weights" if self.precision == "bf16" else ""
        return f"autograd ({type(self.model).__name__}, {self.gradient.numel():,} parameters{low})"

    def room(self, batch: int) -> int:
        """Return 1: it works on one client at a time."""
        return 1

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client.

        Raises:
            ValueError: if asked for a stack.
        """
        (self.client,) = clients
        # What a model writes into its buffers is not carried from one client to another.
        for module, name, first in self.buffers:
            module._buffers[name] = first.clone()
        self.loss, self.calls = self.gradient.new_zeros(1), 0

    def at(self, draws: Sequence[Any]) -> None:
        """Set the mini-batch: one index tensor [batch] into the client's samples."""
        x, y = self.store.batch(self.client, draws[0])
        self.batch = self.prepare(x), y.to(self.gradient.device)

    def grad(self, x: Vec) -> Vec:
        """Return the gradient at x [P]; the buffer is written again by the next call."""
        self._bind(x)
        self._clear()
        loss = self._loss(*self.batch)
        loss.backward()
        self.loss += loss.detach().to(self.loss)
        self.calls += 1
        return self.gradient

    def value(self, x: Vec) -> Tensor:
        """Return the mini-batch loss at x [P] as [1]."""
        self._bind(x)
        with torch.no_grad():
            return self._loss(*self.batch).reshape(1)

    def hvp(self, x: Vec, v: Vec) -> Vec:
        """Return the mini-batch Hessian at x times v, both [P], by two backward passes."""
        self._bind(x)
        first = torch.autograd.grad(self._loss(*self.batch), self.parameters, create_graph=True)
        inner = torch.stack([(g * part).sum() for g, part in zip(first, views(v, self.shapes), strict=True)]).sum()
        second = torch.autograd.grad(inner, self.parameters, materialize_grads=True)
        return torch.cat([h.reshape(-1) for h in second])

    def full_grad(self, x: Vec) -> Vec:
        """Return the gradient at x [P] of the mean loss over all samples of the client."""
        self._bind(x)
        n = int(self.store.sizes[self.client])
        total = torch.zeros_like(self.gradient)
        for index in torch.arange(n).split(FULL_BATCH):
            self._clear()
            xs, ys = self.store.batch(self.client, index)
            (self._loss(self.prepare(xs), ys.to(total.device)) * (len(index) / n)).backward()
            total += self.gradient
        return total

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.precision == "float32":     # of the parameters' own type, whatever it is
            return self.criterion(self.model(x), y)
        with torch.autocast(self.gradient.device.type, torch.bfloat16):
            out = self.model(x)
        return self.criterion(out.to(self.gradient.dtype), y)

    def _clear(self) -> None:
        self.gradient.zero_()

    def _bind(self, x: Vec) -> None:
        # The views keep the bound storage alive, so an equal address means the same memory.
        if self.bound is not None and x.data_ptr() == self.bound.data_ptr():
            return
        if not x.is_contiguous():
            x = x.contiguous()
        for p, part in zip(self.parameters, views(x.detach(), self.shapes), strict=True):
            p.data = part
        self.bound = x
