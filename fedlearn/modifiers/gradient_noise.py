"""Gradient noise: annealed Gaussian noise on every stochastic gradient.

A. Neelakantan, L. Vilnis, Q. V. Le, I. Sutskever, L. Kaiser, K. Kurach, J. Martens, "Adding Gradient Noise Improves
Learning for Very Deep Networks", arXiv 1511.06807, 2015.

    g_t <- g_t + N(0, sigma_t^2 I),   sigma_t^2 = eta / (1 + t)^gamma

======  ======  =======  =======================================================================================
symbol  field   default  where the default comes from
======  ======  =======  =======================================================================================
eta     eta     0.01     the smallest of the paper's 0.01, 0.3 and 1; 0 adds nothing
gamma   gamma   0.55     the paper
t       (step)           local steps since the start of the run; where clients take differently many of them, those
                         that this client would have had, had it taken part in every round so far
======  ======  =======  =======================================================================================

Deviations: none for a single machine. Here every client draws its own noise, keyed by seed, round, client and step, so
that it is the same wherever the client runs, alone or in a stack; an average over S clients has 1/S of its variance.
The noise belongs to the mini-batch: two gradients of one mini-batch have the same. Values of the loss, Hessian-vector
products and gradients over a client's whole data have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..contracts import ClientOracle, Modifier, Objective, Task, Vec
from ..errors import in_range
from ..seeds import generator
from .on_task import OnOracle, OnTask


@dataclass(frozen=True)
class GradientNoise(Modifier):
    """Add noise of variance eta / (1 + t)^gamma to every coordinate of a mini-batch gradient.

    Raises:
        ConfigError: if a field is out of range.
    """

    eta: float = 0.01
    gamma: float = 0.55

    def __post_init__(self) -> None:
        in_range("eta", self.eta, least=0)
        in_range("gamma", self.gamma, least=0)

    def on(self, task: Task) -> Task:
        return NoisyTask(task, self.eta, self.gamma)


@dataclass(frozen=True, eq=False)
class NoisyTask(OnTask):
    """A task with noisy gradients."""

    eta: float
    gamma: float

    def around(self, oracle: ClientOracle) -> ClientOracle:
        return NoisyOracle(oracle, self.eta, self.gamma)


class NoisyOracle(OnOracle):
    """An oracle with noisy gradients, for one client or a stack of them."""

    def __init__(self, oracle: ClientOracle, eta: float, gamma: float) -> None:
        super().__init__(oracle)
        self.eta, self.gamma = eta, gamma
        self.noise: Vec | None = None

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        return f"{self.inner.describe()} with gradient noise"

    def at(self, draws: Sequence[Any]) -> None:
        """Set the current mini-batch; its noise is drawn when a gradient is asked for."""
        super().at(draws)
        self.noise = None

    def grad(self, x: Vec) -> Vec:
        """Return the noisy mini-batch gradient at x [..., P]."""
        return self._noisy(self.inner.grad(x), x)

    def grad_of(self, x: Vec, others: Sequence[Vec], objective: Objective) -> Vec:
        """Return the noisy gradient at x [P] of an objective of the mini-batch."""
        return self._noisy(self.inner.grad_of(x, others, objective), x)

    def _noisy(self, gradient: Vec, x: Vec) -> Vec:
        if not self.worded:     # a trial outside of a run
            return gradient
        if self.noise is None:
            self.noise = self._draw(x)
        return gradient + self.noise.view(x.shape)

    def _draw(self, x: Vec) -> Vec:
        kind: Any = np.float32 if x.dtype == torch.float32 else np.float64
        rows = []
        for worded in self.worded[:self.working]:
            rng = generator(worded.word, "gradient noise", self.k)
            scale = (self.eta / (1 + worded.before + self.k) ** self.gamma) ** 0.5
            rows.append(rng.standard_normal(x.shape[-1], dtype=kind) * kind(scale))
        return torch.from_numpy(np.stack(rows)).to(x)
