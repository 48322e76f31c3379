"""The autograd oracle: any ``nn.Module``, on flat views.

The parameters are made views of the very vector that the algorithm works on. The gradient is one flat buffer that
is written during the backward pass: see ``flat_gradient``. So nothing of the model's size is allocated at a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..contracts import Objective, Vec
from ..vectors import trainable, views
from .flat_gradient import FlatGradient, Straight, linears
from .minibatch import ALIGNED
from .representation import each_once, inputs, last_linear

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
        self.flat = FlatGradient(self.parameters)
        self.gradient = self.flat.flat
        self.straight, self.twice = True, False
        place = {id(p): i for i, p in enumerate(self.parameters)}
        for module in linears(model):
            places = place[id(module.weight)], None if module.bias is None else place[id(module.bias)]
            module.forward = partial(self._linear, module, places)      # type: ignore[method-assign]
        self.buffers = [(module, name, first.detach().clone()) for module in model.modules()
                        for name, first in module._buffers.items() if first is not None]
        self.aligned = self.gradient.new_empty(0)
        self.bound: Tensor | None = None
        self.client = -1
        self.batch: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self.loss, self.calls = self.gradient.new_zeros(1), 0
        model.train()

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        low = f", bfloat16 with float32 weights{little_gain(self.gradient.device)}" if self.precision == "bf16" else ""
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
        self.loss += self._step(x)
        self.calls += 1
        return self.gradient

    def grad_of(self, x: Vec, others: Sequence[Vec], objective: Objective) -> Vec:
        """Return the gradient at x [P] of an objective of the loss and of representations; see ``Oracle``."""
        with inputs(last_linear(self.model)) as seen:
            for other in others:
                self._bind(other)
                with torch.no_grad():
                    self._loss(*self.batch)
            self._bind(x)   # last: what a backward pass needs must stay bound
            loss = self._loss(*self.batch)
        *there, here = (z.to(self.gradient.dtype) for z in each_once(seen, len(others) + 1))
        self.flat.backward(objective(loss, here, there))
        self.loss += loss.detach().to(self.loss.dtype)
        self.calls += 1
        return self.gradient

    def value(self, x: Vec) -> Tensor:
        """Return the mini-batch loss at x [P] as [1]."""
        self._bind(x)
        with torch.no_grad():
            return self._loss(*self.batch).reshape(1)

    def hvp(self, x: Vec, v: Vec) -> Vec:
        """Return the mini-batch Hessian at x times v, both [P], by two backward passes.

        Raises:
            RuntimeError: if the model has no second derivatives, naming the operation.
        """
        self._bind(x)
        self.straight = False
        try:
            loss = self._loss(*self.batch)
        finally:
            self.straight = True
        first = torch.autograd.grad(loss, self.parameters, create_graph=True)
        if not self.twice:
            check_twice(loss, first)
            self.twice = True
        inner = torch.stack([(g * part).sum() for g, part in zip(first, views(v, self.shapes), strict=True)]).sum()
        second = torch.autograd.grad(inner, self.parameters, materialize_grads=True)
        return torch.cat([h.reshape(-1) for h in second])

    def full_grad(self, x: Vec) -> Vec:
        """Return the gradient at x [P] of the mean loss over all samples of the client."""
        self._bind(x)
        n = int(self.store.sizes[self.client])
        total = torch.zeros_like(self.gradient)
        for index in torch.arange(n).split(FULL_BATCH):
            xs, ys = self.store.batch(self.client, index)
            self._backward(self.prepare(xs), ys.to(total.device))
            total.add_(self.gradient, alpha=len(index) / n)
        return total

    def full_value(self, x: Vec) -> Tensor:
        """Return the mean loss over all samples of the client at x [P] as [1]."""
        self._bind(x)
        n = int(self.store.sizes[self.client])
        total = torch.zeros_like(self.loss)
        with torch.no_grad():
            for index in torch.arange(n).split(FULL_BATCH):
                xs, ys = self.store.batch(self.client, index)
                total += self._loss(self.prepare(xs), ys.to(total.device)) * (len(index) / n)
        return total

    def _step(self, x: Vec) -> Tensor:
        """Write the gradient of the mini-batch loss at x [P]; return that loss."""
        self._bind(x)
        return self._backward(*self.batch)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self.precision == "float32":     # of the parameters' own type, whatever it is
            return self.criterion(self.model(x), y)
        with torch.autocast(self.gradient.device.type, torch.bfloat16):
            out = self.model(x)
        return self.criterion(out.to(self.gradient.dtype), y)

    def _backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradient of the loss at the bound weights; return the loss."""
        loss = self._loss(x, y)
        self.flat.backward(loss)
        return loss.detach().to(self.loss.dtype)

    def _linear(self, module: nn.Linear, places: tuple[int, int | None], x: Tensor) -> Tensor:
        if not self.straight or self._lowers(x):
            return F.linear(x, module.weight, module.bias)
        if self.precision == "float32":
            return Straight.apply(x, module.weight, module.bias, self.flat, places)
        with torch.autocast(x.device.type, enabled=False):
            return Straight.apply(x.to(module.weight.dtype), module.weight, module.bias, self.flat, places)

    def _lowers(self, x: Tensor) -> bool:
        """Return whether a linear layer computes in bfloat16, given its input."""
        return self.precision == "bf16"

    def _bind(self, x: Vec) -> None:
        if x.data_ptr() % ALIGNED or not x.is_contiguous():
            if not len(self.aligned):
                self.aligned = torch.empty_like(self.gradient)
            x = self.aligned.copy_(x)
        # The views keep the bound storage alive, so an equal address means the same memory.
        if self.bound is not None and x.data_ptr() == self.bound.data_ptr():
            return
        for p, part in zip(self.parameters, views(x.detach(), self.shapes), strict=True):
            p.data = part
        self.bound = x


def little_gain(device: torch.device) -> str:
    """Say so where bfloat16 products gain little or nothing: on an x86 CPU without units for them."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return ", rarely faster than float32 on a CPU without AMX" if known.get("amx_bf16") is False else ""


def check_twice(loss: Tensor, gradients: Sequence[Tensor]) -> None:
    """Refuse functions that say they are differentiable once only: torch.autograd.grad would take them for constants.

    Raises:
        RuntimeError: naming the functions of the user's own among which they are.
    """
    if any(node.name().endswith("Error") for node in _nodes(gradients)):
        custom = torch.autograd.function.BackwardCFunction
        own = {type(node).__name__.removesuffix("Backward") for node in _nodes([loss]) if isinstance(node, custom)}
        raise RuntimeError(f"{' or '.join(sorted(own)) or 'an operation'} is marked with @once_differentiable")


def _nodes(outputs: Sequence[Tensor]) -> list[Any]:
    """Return the nodes of the autograd graph behind some tensors."""
    seen: dict[Any, None] = {}
    todo = [t.grad_fn for t in outputs if t.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen[node] = None
            todo += [other for other, _ in node.next_functions if other is not None]
    return list(seen)
