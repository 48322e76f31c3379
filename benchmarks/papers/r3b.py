"""R3b: on quadratics, what linear-update methods average does not depend on how often they communicate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlearn.algorithms.fedac import FedAc
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.local_acsa import LocalACSA
from fedlearn.contracts import LocalPlan
from fedlearn.tasks.quadratic import QuadraticTask

from .paper import About, Criterion, Result, trained

ABOUT = About(
    "R3b", "On equal quadratics with shared noise Local SGD, local AC-SA and FedAc end where K = 1 ends.",
    "B. Woodworth et al., Is Local SGD Better than Minibatch SGD?, ICML 2020, the linear-update theorem.")

TOTAL, INTERVALS, CLIENTS, DIMENSION, SIGMA = 64, (1, 4, 16, 64), 8, 10, 1.0
METHODS: dict[str, Any] = {"Local SGD": FedAvg(lr=0.3), "local AC-SA": LocalACSA(lr=0.2),
                           "FedAc-I": FedAc(lr=0.3, mu=0.05, gamma=0.8),
                           "FedAc-II": FedAc(variant="II", lr=0.3, mu=0.05, gamma=0.8)}


class SharedNoise(QuadraticTask):
    """Equal quadratics whose gradient noise, [clients, steps, P], belongs to the client and the step of the run."""

    noise: Tensor

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Tensor | None]:
        """Return the noise [P] of each of the K steps."""
        return list(self.noise[client, local.before:local.before + local.steps_for(1)])


def task(seed: int, clients: int = CLIENTS) -> SharedNoise:
    """Return the problem of a seed: condition number 20, every client's objective the same."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((DIMENSION, DIMENSION)))
    A = torch.from_numpy(basis * np.geomspace(0.05, 1.0, DIMENSION) @ basis.T)
    optimum = torch.from_numpy(rng.standard_normal(DIMENSION))
    made = SharedNoise((A + A.T).div(2).expand(clients, -1, -1).clone(), optimum.expand(clients, -1).clone(),
                       torch.zeros(DIMENSION, dtype=torch.float64))
    made.noise = torch.from_numpy(rng.standard_normal((clients, TOTAL, DIMENSION))) * SIGMA / DIMENSION**0.5
    return made


def final(algorithm: Any, seed: int, steps: int, **choices: Any) -> Tensor:
    """Return the model after TOTAL steps with one communication in ``steps``."""
    history = trained(algorithm, task(seed), rounds=TOTAL // steps, steps=steps, seed=seed, **choices)
    assert history is not None
    return history.x


def reproduce(seeds: int) -> Result:
    """Compare the final models of all K with that of K = 1."""
    rows, worst = [], {}
    for name, algorithm in METHODS.items():
        away: dict[int, list[float]] = {K: [] for K in INTERVALS}
        for seed in range(seeds):
            models = {K: final(algorithm, seed, K) for K in INTERVALS}
            for K in INTERVALS:
                away[K].append(float((models[K] - models[1]).norm()))
        worst[name] = {K: max(values) for K, values in away.items()}
        rows.append([name, *(f"{worst[name][K]:.1e}" for K in INTERVALS[1:]), "<= 1e-10"])
    criteria = [Criterion(f"{name}: |x(K) - x(1)| <= 1e-10 for all K",
                          f"at most {max(by.values()):.1e} in {seeds} seeds", max(by.values()) <= 1e-10)
                for name, by in worst.items()]

    def draw(axes: Any) -> None:
        for name, by in worst.items():
            axes.semilogy(INTERVALS[1:], [max(by[K], 1e-18) for K in INTERVALS[1:]], "o-", label=name)
        axes.axhline(1e-10, color="grey", linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("K")
        axes.set_ylabel("largest |x(K) - x(1)| over the seeds")
        axes.legend()

    return Result(("method", *(f"K={K}" for K in INTERVALS[1:]), "expected"), rows, criteria, draw)
