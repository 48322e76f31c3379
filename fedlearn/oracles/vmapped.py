"""The vmap oracle: stacks of clients for any other small model, by ``torch.func.vmap`` of its gradient.

Clients whose mini-batches have the same length are computed together, so that any loss is exact. The last bits of a
client's gradient may depend on who else is in the stack: **this oracle is outside the promise that placement does not
change the result**, and is used only where it is asked for or where ``stack=true`` leaves nothing better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..contracts import Vec
from ..vectors import trainable
from .layers import DoesNotFit

FULL_BATCH = 1000           # samples at a time in a pass over a client's whole data
STACK_BYTES = 64 * 2**20    # of a stack's models and gradients
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

Group = tuple[Tensor, Tensor, Tensor]   # places in the stack, features, labels


class Vmapped:
    """One client, [P], or a stack, [clients, P]; ``store`` has ``sizes`` and ``batch(client, index)``.

    Raises:
        DoesNotFit: if torch.func cannot differentiate the model, or it draws random numbers.
    """

    stacks = True

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], store: Any,
                 prepare: Callable[[Tensor], Tensor]) -> None:
        self.model, self.criterion, self.store, self.prepare = model.train(), loss, store, prepare
        self.names, parameters = zip(*trainable(model), strict=True)
        self.shapes = [p.shape for p in parameters]
        self.new = parameters[0].new_zeros
        self.size = sum(p.numel() for p in parameters)
        self.clients: Sequence[int] = ()
        self.groups: list[Group] = []
        self.gradient = self.new(0, self.size)
        self.loss, self.calls = self.new(0), 0
        if any(isinstance(m, DROPOUT) and m.p > 0 for m in model.modules()):
            raise DoesNotFit("it has dropout, whose random numbers would depend on the stack")
        self.enter([0, 0])
        self.at([torch.tensor([0])] * 2)
        try:
            self.grad(self.new(2, self.size))
        except RuntimeError as e:
            raise DoesNotFit(f"torch.func cannot run it ({str(e).splitlines()[0]})") from e

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        return f"vmap of the gradient ({self.size:,} parameters; bits may depend on the stack)"

    def room(self, batch: int) -> int:
        """Return how many clients a stack may hold."""
        return max(1, STACK_BYTES // (self.loss.element_size() * 8 * self.size))

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client, or of a stack of clients."""
        self.clients, self.loss, self.calls = clients, self.new(len(clients)), 0

    def at(self, draws: Sequence[Tensor]) -> None:
        """Set the mini-batch: an index tensor [batch] into the samples of each client that still works."""
        places: dict[int, list[int]] = {}
        for i, index in enumerate(draws):
            places.setdefault(len(index), []).append(i)
        self.groups = []
        for group in places.values():
            x, y = zip(*(self.store.batch(self.clients[i], draws[i]) for i in group), strict=True)
            features = self.prepare(torch.stack(x))
            self.groups.append((torch.tensor(group, device=features.device), features,
                                torch.stack(y).to(features.device)))

    def grad(self, x: Vec) -> Vec:
        """Return the mini-batch gradient at x [..., P]; the buffer is written again by the next call."""
        rows = x.detach().view(-1, self.size)
        if len(self.gradient) < len(rows):
            self.gradient = torch.empty_like(rows)
        gradient = self.gradient[:len(rows)]
        into = self._split(gradient)
        for places, features, labels in self.groups:
            everybody = len(places) == len(rows)
            parameters = [part.requires_grad_() for part in self._split(rows if everybody else rows[places])]
            with torch.enable_grad():
                values = vmap(self._loss)(parameters, features, labels)
            parts = torch.autograd.grad(values.sum(), parameters, materialize_grads=True)
            for place, part in zip(into, parts, strict=True):
                if everybody:
                    place.copy_(part)
                else:
                    place[places] = part
            self.loss[places] += values.detach().to(self.loss)
        self.calls += 1
        return gradient.view(x.shape)

    def value(self, x: Vec) -> Tensor:
        """Return the mini-batch loss at x [..., P] as [..., 1]."""
        rows = x.detach().view(-1, self.size)
        values = self.new(len(rows))
        with torch.no_grad():
            for places, features, labels in self.groups:
                values[places] = vmap(self._loss)(self._split(rows[places]), features, labels).to(values)
        return values.view(*x.shape[:-1], 1)

    def hvp(self, x: Vec, v: Vec) -> Vec:
        """Return the mini-batch Hessian at x times v, both [..., P]."""
        def along(x: Vec, v: Vec, features: Tensor, labels: Tensor) -> Vec:
            return grad(lambda z: grad(self._flat_loss)(z, features, labels) @ v)(x)

        rows, result = x.detach().view(-1, self.size), torch.empty_like(x)
        for places, features, labels in self.groups:
            product = vmap(along)(rows[places], v.view(-1, self.size)[places], features, labels)
            result.view(-1, self.size)[places] = product.detach()
        return result

    def full_grad(self, x: Vec) -> Vec:
        """Return the gradient at x [..., P] of the mean loss over all samples of each client."""
        total = self.new(x.shape)
        rows = zip(self.clients, x.detach().view(-1, self.size), total.view(-1, self.size), strict=False)
        for client, row, into in rows:
            n = int(self.store.sizes[client])
            for index in torch.arange(n).split(FULL_BATCH):
                features, labels = self.store.batch(client, index)
                features = self.prepare(features)
                into += grad(self._flat_loss)(row, features, labels.to(features.device)) * (len(index) / n)
        return total

    def full_value(self, x: Vec) -> Tensor:
        """Return the mean loss over all samples of each client at x [..., P] as [..., 1]."""
        rows = x.detach().view(-1, self.size)
        total = self.new(len(rows))
        with torch.no_grad():
            for client, row, i in zip(self.clients, rows, range(len(rows)), strict=False):
                n = int(self.store.sizes[client])
                for index in torch.arange(n).split(FULL_BATCH):
                    features, labels = self.store.batch(client, index)
                    features = self.prepare(features)
                    total[i] += self._flat_loss(row, features, labels.to(features.device)) * (len(index) / n)
        return total.view(*x.shape[:-1], 1)

    def _split(self, x: Vec) -> list[Tensor]:
        """Return the parameters in x [..., P] as views of their shapes, after those dimensions that come before P."""
        parts = x.split([shape.numel() for shape in self.shapes], -1)
        return [part.view(*x.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _loss(self, parameters: Sequence[Tensor], features: Tensor, labels: Tensor) -> Tensor:
        named = dict(zip(self.names, parameters, strict=True))
        return self.criterion(functional_call(self.model, named, (features,)), labels)

    def _flat_loss(self, x: Vec, features: Tensor, labels: Tensor) -> Tensor:
        return self._loss(self._split(x), features, labels)
