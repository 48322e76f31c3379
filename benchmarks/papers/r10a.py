"""R10a: which methods end at the optimum of clients that differ, and where the others end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.feddyn import FedDyn
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.seeds import generator
from fedlearn.tasks.quadratic import QuadraticTask

from .paper import About, Criterion, Result, estimate, trained

ABOUT = About("R10a", "SCAFFOLD, FedDyn and Mime remove the clients' drift; FedAvg ends at its known fixed point.",
              "Karimireddy et al., SCAFFOLD, ICML 2020, and Mime, NeurIPS 2021; Acar et al., FedDyn, ICLR 2021")
CLIENTS, SIZE, K, ETA, ROUNDS = 8, 10, 10, 0.2, 400
METHODS = {"FedAvg": (FedAvg(lr=ETA), 0.181), "FedProx, mu = 1": (FedProx(lr=ETA, mu=1.0), 0.132),
           "SCAFFOLD I": (Scaffold(lr=ETA, option="I"), 2e-15), "SCAFFOLD II": (Scaffold(lr=ETA), 2e-15),
           "FedDyn, alpha = 0.5": (FedDyn(lr=ETA, alpha=0.5), 2e-15),
           "Mime, SGD": (Mime(lr=ETA, beta1=0.0), 2e-15)}
EXACT = list(METHODS)[2:]


def instance(seeds: int) -> QuadraticTask:
    """Return clients with random axes, curvatures uniform in [0.2, 1.2] and standard normal optima; x0 = 0.

    Each seed is a block of coordinates: all methods here are linear and leave the blocks apart.
    """
    A, optima = [], []
    for seed in range(seeds):
        rng = generator(seed, "problem")
        axes = np.linalg.qr(rng.standard_normal((CLIENTS, SIZE, SIZE)))[0]
        a = np.einsum("mij,mj,mkj->mik", axes, rng.uniform(0.2, 1.2, (CLIENTS, SIZE)), axes)
        A.append(torch.from_numpy(a + a.transpose(0, 2, 1)) / 2)
        optima.append(torch.from_numpy(rng.standard_normal((CLIENTS, SIZE))))
    whole = torch.stack([torch.block_diag(*(a[m] for a in A)) for m in range(CLIENTS)])
    return QuadraticTask(whole, torch.cat(optima, 1), torch.zeros(seeds * SIZE, dtype=torch.float64))


def by_seed(away: torch.Tensor) -> list[float]:
    """Return the norm of each seed's block."""
    return away.view(-1, SIZE).norm(dim=1).tolist()


def fixed_point(task: QuadraticTask) -> torch.Tensor:
    """Return (sum_m C_m)^-1 sum_m C_m o_m with C_m = I - (I - eta A_m)^K, where Local GD ends."""
    eye = torch.eye(len(task.x0), dtype=torch.float64)
    C = eye - torch.linalg.matrix_power(eye - ETA * task.A, K)
    return torch.linalg.solve(C.sum(0), torch.einsum("mij,mj->i", C, task.optima))


def reproduce(seeds: int) -> Result:
    """Train each method, with exact gradients, and measure how far from x* it ends."""
    task = instance(seeds)
    ends: dict[str, list[float]] = {}
    paths: dict[str, list[float]] = {}
    off: list[float] = []
    for name, (algorithm, _) in METHODS.items():
        history = trained(algorithm, task, rounds=ROUNDS, steps=K, every=20)
        assert history is not None
        ends[name] = by_seed(history.x - task.optimum)
        paths[name] = [line["test_distance"] / seeds**0.5 for line in history.metrics if "test_distance" in line]
        if name == "FedAvg":
            off = by_seed(history.x - fixed_point(task))
    rows = [(name, expected if expected > 0.01 else "<= 2e-15", str(estimate(ends[name])), max(ends[name]))
            for name, (_, expected) in METHODS.items()]
    criteria = [Criterion(f"{name} within 1e-10 of x*", estimate(ends[name]), max(ends[name]) < 1e-10)
                for name in EXACT]
    criteria.append(Criterion("FedAvg within 1e-10 of its closed form", estimate(off), max(off) < 1e-10))

    def draw(axes: Any) -> None:
        for name, path in paths.items():
            axes.semilogy(np.linspace(20, ROUNDS, len(path)), np.clip(path, 1e-17, None), label=name)
        axes.set(xlabel="rounds", ylabel="root mean square distance to x*")
        axes.legend()

    return Result(("method", "expected |x - x*|", "|x - x*|", "largest"), rows, criteria, draw)
