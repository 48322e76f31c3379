"""Closed-form oracles: quadratics and (generalised) linear models, for one client or a stack of them.

Inside, everything is [clients, P]; a client alone, [P], is a stack of one, so that its bits depend on
nothing but itself. A stack shrinks: fewer draws than clients mean that a leading part still works.
The last bits of a client in a stack may depend on how many others are in it: with ``stack=true`` these
oracles are outside the promise that placement does not change the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contracts import Vec
from ..data.store import ClientStore
from ..vectors import dot

STACK = 256     # clients: more would leave the caches without gaining anything


class ClosedForm(ABC):
    """What the oracles here share: the book-keeping, and [P] as a stack of one."""

    stacks = True

    def __init__(self) -> None:
        self.clients: Sequence[int] = ()
        self.loss, self.calls = torch.zeros(0, dtype=torch.float64), 0

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        return f"closed form ({type(self).__name__.removesuffix('Oracle')})"

    def room(self, batch: int) -> int:
        """Return how many clients a stack may hold."""
        return STACK

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client, or of a stack of clients."""
        self.clients = list(clients)
        self.loss, self.calls = torch.zeros(len(self.clients), dtype=torch.float64), 0

    @abstractmethod
    def at(self, draws: Sequence[Any]) -> None:
        """Set the mini-batch: one draw per client of the leading part that still works."""

    def grad(self, x: Vec) -> Vec:
        """Return the mini-batch gradient at x [..., P]."""
        value, gradient = self._first_order(_rows(x))
        self.loss[:len(value)] += value.squeeze(-1)
        self.calls += 1
        return gradient.view(x.shape)

    def value(self, x: Vec) -> Tensor:
        """Return the mini-batch loss at x [..., P] as [..., 1]."""
        return self._first_order(_rows(x))[0].view(*x.shape[:-1], 1)

    def hvp(self, x: Vec, v: Vec) -> Vec:
        """Return the mini-batch Hessian at x times v, both [..., P]."""
        return self._second_order(_rows(x), _rows(v)).view(x.shape)

    def full_grad(self, x: Vec) -> Vec:
        """Return the gradient at x [..., P] of each client's whole objective."""
        return self._full(_rows(x)).view(x.shape)

    def full_value(self, x: Vec) -> Tensor:
        """Return the whole objective of each client at x [..., P] as [..., 1]."""
        return self._whole(_rows(x)).view(*x.shape[:-1], 1)

    @abstractmethod
    def _first_order(self, x: Vec) -> tuple[Tensor, Vec]:
        """Return the loss [clients, 1] and the gradient [clients, P]."""

    @abstractmethod
    def _second_order(self, x: Vec, v: Vec) -> Vec: ...

    @abstractmethod
    def _full(self, x: Vec) -> Vec: ...

    def _whole(self, x: Vec) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not know the value of a client's whole objective")


class QuadraticOracle(ClosedForm):
    """f(x; xi) = 1/2 (x - o_m)' A_m (x - o_m) + xi' (x - o_m), the gradient noise xi being the draw.

    ``A`` is [clients, P, P], ``optima`` [clients, P]; a draw is xi [P], or None for no noise.
    """

    def __init__(self, A: Tensor, optima: Tensor) -> None:
        super().__init__()
        self.all_A, self.all_optima = A, optima
        self.A, self.optima = A[:0], optima[:0]
        self.noise: Tensor | None = None

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over one client (views) or a stack of clients (copies of their matrices)."""
        super().enter(clients)
        alone = len(clients) == 1
        chosen = slice(clients[0], clients[0] + 1) if alone else torch.as_tensor(self.clients)
        self.A, self.optima = self.all_A[chosen], self.all_optima[chosen]

    def at(self, draws: Sequence[Tensor | None]) -> None:
        """Set the gradient noise of each client that still works: [P], or None."""
        self.noise = None if draws[0] is None else torch.stack([d for d in draws if d is not None])

    def _first_order(self, x: Vec) -> tuple[Tensor, Vec]:
        away = x - self.optima[:len(x)]
        gradient = _times(self.A[:len(x)], away)
        value = dot(gradient, away) / 2
        if self.noise is not None:
            value, gradient = value + dot(self.noise, away), gradient + self.noise
        return value, gradient

    def _second_order(self, x: Vec, v: Vec) -> Vec:
        return _times(self.A[:len(x)], v)

    def _full(self, x: Vec) -> Vec:
        return _times(self.A[:len(x)], x - self.optima[:len(x)])

    def _whole(self, x: Vec) -> Tensor:
        return dot(self._full(x), x - self.optima[:len(x)]) / 2


@dataclass(frozen=True)
class Link:
    """How a linear model's score z = features . x becomes a loss; all functions work entrywise.

    ``loss`` names the loss of a supervised task; ``pointwise`` (z, y) is that of one sample,
    ``mean`` (z) the predicted label, so that the derivative of the loss is mean(z) - y, ``slope``
    (z) its second derivative, at most ``curvature``; ``divergence`` (z, z0) is the loss at z minus
    its tangent at z0.
    """

    loss: str
    pointwise: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    curvature: float


def _half_square(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square() / 2


def _same(z: Tensor) -> Tensor:
    return z


def _softplus(z: Tensor) -> Tensor:
    # Linear only where double precision sees no difference; torch's own threshold of 20 is 2e-9 off.
    return F.softplus(z, threshold=40)


def _logistic_loss(z: Tensor, y: Tensor) -> Tensor:
    return _softplus(z) - y * z


def _logistic_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _logistic_divergence(z: Tensor, z0: Tensor) -> Tensor:
    return _softplus(z) - _softplus(z0) - torch.sigmoid(z0) * (z - z0)


IDENTITY = Link("squared", _half_square, _same, torch.ones_like, _half_square, 1.0)
LOGISTIC = Link("binary_cross_entropy", _logistic_loss, torch.sigmoid, _logistic_slope, _logistic_divergence,
                0.25)


class LinearModelOracle(ClosedForm):
    """The mean loss of a linear model on a mini-batch, plus l2 / 2 times the squared norm of x.

    ``store`` holds features [n, P] and labels [n] of the dtype of the model; a draw is an index
    tensor [batch] into a client's samples. In a stack shorter batches are padded with weight 0.
    """

    def __init__(self, store: ClientStore, link: Link, l2: float) -> None:
        super().__init__()
        self.store, self.link, self.l2 = store, link, l2
        self.x = self.y = self.weights = torch.empty(0)

    def at(self, draws: Sequence[Tensor]) -> None:
        """Gather the mini-batch of each client that still works."""
        longest = max(len(index) for index in draws)
        rows = torch.zeros(len(draws), longest, dtype=torch.int64)
        weights = torch.zeros(len(draws), longest, dtype=self.store.features.dtype)
        for i, (m, index) in enumerate(zip(self.clients, draws, strict=False)):
            rows[i, :len(index)] = index + int(self.store.offsets[m])
            weights[i, :len(index)] = 1 / len(index)
        self.x, self.y, self.weights = self.store.features[rows], self.store.labels[rows], weights

    def _first_order(self, x: Vec) -> tuple[Tensor, Vec]:
        z = _times(self.x, x)
        value = dot(self.weights, self.link.pointwise(z, self.y)) + self.l2 / 2 * dot(x, x)
        residual = self.weights * (self.link.mean(z) - self.y)
        return value, _times(self.x.mT, residual) + self.l2 * x

    def _second_order(self, x: Vec, v: Vec) -> Vec:
        slope = self.weights * self.link.slope(_times(self.x, x))
        return _times(self.x.mT, slope * _times(self.x, v)) + self.l2 * v

    def _full(self, x: Vec) -> Vec:
        gradient = self.l2 * x
        for row, point, m in zip(gradient, x, self.clients, strict=False):
            features, labels = self.store.client(m)
            row += features.mT @ (self.link.mean(features @ point) - labels) / len(labels)
        return gradient

    def _whole(self, x: Vec) -> Tensor:
        value = self.l2 / 2 * dot(x, x)
        for row, point, m in zip(value, x, self.clients, strict=False):
            features, labels = self.store.client(m)
            row += self.link.pointwise(features @ point, labels).mean()
        return value


def _rows(x: Vec) -> Vec:
    return x.unsqueeze(0) if x.dim() == 1 else x


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Multiply [clients, a, b] by [clients, b]."""
    return torch.bmm(matrices, vectors.unsqueeze(-1)).squeeze(-1)
