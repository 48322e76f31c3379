"""Logistic regression in which all clients draw, with replacement, from the same samples: equal clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedlearn.contracts import LocalPlan, Modifier, ServerAlgorithm, Tree, Vec
from fedlearn.data.store import ClientStore
from fedlearn.modifiers.averaging import OverRounds
from fedlearn.oracles.closed_form import LOGISTIC, LinearModelOracle
from fedlearn.tasks.linear_model import LinearModelTask

from .paper import trained


class Drawn(Sequence[int]):
    """The samples of a round, [steps, batch]; step k is known by its number, so that nothing is cut into pieces."""

    def __init__(self, index: np.ndarray) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, k: Any) -> Any:
        return k


class Pooled(LinearModelTask):
    """``clients`` clients with the same ``features`` [n, P] and ``labels`` [n]; F has the l2 term."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, clients: int, l2: float = 0.0) -> None:
        x, y = torch.from_numpy(features), torch.from_numpy(labels)
        super().__init__(ClientStore(x, y, np.array([0, len(y)])), LOGISTIC, l2, dtype=torch.float64)
        self.floor = self.minimum   # known from now on: found with the sizes of a single client, as they still are
        self.sizes = np.full(clients, len(y))

    def oracle(self, kind: str = "auto", precision: str = "float32") -> PooledOracle:
        """Return the closed-form oracle; it stacks."""
        return PooledOracle(self.store, LOGISTIC, self.l2)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Drawn:
        """Return K batches drawn with replacement."""
        n = int(self.sizes[client])
        return Drawn(rng.integers(n, size=(local.steps_for(n), local.batch_for(n))))


class PooledOracle(LinearModelOracle):
    """Gathers the batches of all clients and steps of a round at once."""

    def enter(self, clients: Sequence[int], draws: Sequence[Any] | None = None) -> None:
        """Take over the clients, with their batches."""
        super().enter(clients)
        assert draws is not None
        self.index = torch.from_numpy(np.stack([drawn.index for drawn in draws], 1))   # [steps, clients, batch]
        shape = self.index.shape[1:]
        self.every = torch.full(shape, 1 / shape[1], dtype=self.store.features.dtype)

    def at(self, draws: Sequence[int]) -> None:
        """Take the batches of a step."""
        index, alive = self.index[draws[0]], len(draws)
        self.x, self.y = self.store.features[index[:alive]], self.store.labels[index[:alive]]
        self.weights = self.every[:alive]


@dataclass(frozen=True)
class Both(Modifier):
    """The last iterate is evaluated; ``average`` in the last line is what the mean of the rounds' models is worth."""

    task: Pooled
    rounds: int

    def around(self, algorithm: ServerAlgorithm) -> ServerAlgorithm:
        """Return the algorithm that keeps the average beside its iterates."""
        return LastAndAverage(algorithm, 0.0, 0, self.task, self.rounds)


@dataclass(frozen=True)
class LastAndAverage(OverRounds):
    """The algorithm, with the average beside it."""

    task: Pooled
    rounds: int

    def model(self, s: Tree) -> Vec:
        """Return the last iterate."""
        return self.inner.model(s.inner)

    def metrics(self, s: Tree) -> dict[str, float]:
        """Return, after the last round, the suboptimality of the average."""
        if float(s.own.weight) < self.rounds:
            return {}
        return {"average": self.task.evaluate(s.own.x)["suboptimality"]}


def best_of_last_and_average(algorithm: ServerAlgorithm, task: Pooled, *, rounds: int, steps: int, seed: int,
                             **choices: Any) -> float:
    """Train, and return the lower suboptimality of the last iterate and of the mean over the rounds."""
    history = trained(algorithm, task, rounds=rounds, steps=steps, seed=seed, modifiers={"both": Both(task, rounds)},
                      **choices)
    if history is None:
        return float("inf")
    found = [history.final("test_suboptimality"), history.final("average")]
    return min(value if np.isfinite(value) else float("inf") for value in found)
