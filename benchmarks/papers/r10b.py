"""R10b: clients that take different numbers of local steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fednova import FedNova
from fedlearn.policies.local_work import LocalWork
from fedlearn.tasks.quadratic import QuadraticTask

from .paper import About, Criterion, Estimate, Result, estimate, trained
from .r10a import CLIENTS, by_seed, instance

ABOUT = About("R10b", "With unequal numbers of local steps FedAvg minimises another objective, FedNova does not.",
              "Wang et al., Tackling the Objective Inconsistency Problem, NeurIPS 2020, Theorems 1 and 3")
STEPS = np.linspace(1, 40, CLIENTS).round().astype(int)
ETAS = (0.02, 0.002)
EXPECTED = {FedAvg: {0.02: 0.63, 0.002: 0.70}, FedNova: {0.02: 0.057, 0.002: 0.007}}
ROUNDS = 150


def distances(kind: type, eta: float, seeds: int) -> list[float]:
    """Return by seed how far from the optimum of the plain mean a method ends.

    A client takes one step for each of its nominal samples, all gradients exact. Where the method ends does
    not depend on the server's step: the largest safe one gets there soonest.
    """
    task = instance(seeds)
    unequal = QuadraticTask(task.A, task.optima, task.x0, sizes=STEPS)
    eye = torch.eye(len(task.x0), dtype=torch.float64)
    pulls = torch.stack([eye - torch.linalg.matrix_power(eye - eta * A, int(k))
                         for A, k in zip(task.A, STEPS, strict=True)])
    if kind is FedNova:
        pulls = pulls * (STEPS.mean() / torch.from_numpy(STEPS))[:, None, None]
    server_lr = 1 / float(torch.linalg.eigvals(pulls.mean(0)).abs().max())
    history = trained(kind(lr=eta, server_lr=server_lr), unequal, rounds=ROUNDS, steps=1,
                      local=LocalWork(epochs=1, batch_size=1))
    assert history is not None
    return by_seed(history.x - task.optimum)


def reproduce(seeds: int) -> Result:
    """Train both with two step sizes and see what becomes of the distance to x*."""
    far = {(kind, eta): distances(kind, eta, seeds) for kind in EXPECTED for eta in ETAS}
    found: dict[tuple[type, float], Estimate] = {key: estimate(values) for key, values in far.items()}
    rows = [(kind.__name__, eta, EXPECTED[kind][eta], str(found[kind, eta])) for kind, eta in far]
    ratio = {kind: estimate(a / b for a, b in zip(*(far[kind, eta] for eta in ETAS), strict=True)) for kind in EXPECTED}
    criteria = [Criterion(f"{kind.__name__}: distance at {ETAS[0]} over that at {ETAS[1]} in [{low}, {high}]",
                          ratio[kind], low <= ratio[kind].mean <= high)
                for kind, low, high in ((FedNova, 5, 12), (FedAvg, 0.8, 1.3))]

    def draw(axes: Any) -> None:
        for kind in EXPECTED:
            axes.loglog(ETAS, [found[kind, eta].mean for eta in ETAS], "o-", label=kind.__name__)
        axes.set(xlabel="client step size", ylabel="distance to x* at the end")
        axes.legend()

    return Result(("method", "eta", "expected |x - x*|", "|x - x*|"), rows, criteria, draw)
