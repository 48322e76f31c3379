"""R1a: how the bias of local SGD grows with its steps and its step size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import fedlearn
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.inprocess import InProcess
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import FullParticipation
from fedlearn.policies.weighting import UniformWeighting

from .paper import About, Criterion, Result, estimate
from .separable import Separable, kink

ABOUT = About("R1a", "The iterate bias of SGD is of order eta^2 k^(3/2) at a kink, and eta^3 k^2 where F is smooth.",
              "Glasgow, Yuan, Ma: Sharp Bounds for Federated Averaging, AISTATS 2022")
CLIENTS, PATHS, SIGMA = 50, 2000, 0.1       # 100,000 antithetic paths for each seed
STEPS, SMALL, LARGE = (16, 64), 5e-4, 1e-3
SMOOTH_AT, SMOOTH_STEPS, SMOOTH_ETAS, SMOOTH_SIGMA = 1.0, (16, 64), (0.002, 0.004), 1.0  # eta H k well below 1


def bias(task: Separable, eta: float, k: int, seed: int, start: float) -> float:
    """Return the mean of k-step SGD minus k steps of gradient descent from the same start: one round of Local SGD."""
    history = fedlearn.run(algorithm=FedAvg(lr=eta), task=task, rounds=1, seed=seed, sampling=FullParticipation(),
                           weighting=UniformWeighting(), backend=InProcess(), local=LocalWork(steps=k, batch_size=1),
                           stack=True, progress="none", evaluate_every=0)
    z = torch.tensor([start], dtype=torch.float64)
    for _ in range(k):
        z = z - eta * task.slope(z)
    return float(history.x.mean() - z)


def reproduce(seeds: int) -> Result:
    """Measure the four exponents and the constant of the smooth case."""
    ones = torch.ones(PATHS, dtype=torch.float64)
    kinked = Separable(CLIENTS, 0 * ones, SIGMA * ones, *kink(0.5, 1.0), antithetic=True)
    smooth = Separable(CLIENTS, SMOOTH_AT * ones, SMOOTH_SIGMA * ones, torch.sigmoid, F.softplus, antithetic=True)
    third = float(torch.sigmoid(torch.tensor(SMOOTH_AT, dtype=torch.float64)))
    third = third * (1 - third) * (1 - 2 * third)   # F''' of softplus
    by_k, by_eta, smooth_k, smooth_eta, constant, curves = [], [], [], [], [], []
    for seed in range(seeds):
        few, many = (bias(kinked, LARGE, k, seed, 0.0) for k in STEPS)
        half = bias(kinked, SMALL, STEPS[1], seed, 0.0)
        by_k.append(np.log(many / few) / np.log(STEPS[1] / STEPS[0]))
        by_eta.append(np.log(many / half) / np.log(LARGE / SMALL))
        short, long = (bias(smooth, SMOOTH_ETAS[0], k, seed, SMOOTH_AT) for k in SMOOTH_STEPS)
        doubled = bias(smooth, SMOOTH_ETAS[1], SMOOTH_STEPS[0], seed, SMOOTH_AT)
        smooth_k.append(np.log(long / short) / np.log(SMOOTH_STEPS[1] / SMOOTH_STEPS[0]))
        smooth_eta.append(np.log(doubled / short) / np.log(SMOOTH_ETAS[1] / SMOOTH_ETAS[0]))
        constant.append(-short / (SMOOTH_ETAS[0] ** 3 * SMOOTH_STEPS[0] ** 2 * SMOOTH_SIGMA**2 * third))
        curves.append((few, many, short, long))
    found = {"kink, in k": (by_k, 1.5, "1.52"), "kink, in eta": (by_eta, 2.0, "1.98"),
             "smooth, in k": (smooth_k, 2.0, "1.96"), "smooth, in eta": (smooth_eta, 3.0, "2.96")}
    rows = [(name, theory, expected, estimate(values)) for name, (values, theory, expected) in found.items()]
    rows.append(("smooth, constant", 0.25, "within 10% of 1/4", estimate(constant)))
    criteria = [Criterion(f"exponent {name} within 0.1 of {theory}", e := estimate(values), abs(e.mean - theory) < 0.1)
                for name, (values, theory, _) in found.items()]
    criteria.append(Criterion("constant of the smooth case within 10% of 1/4", c := estimate(constant),
                              abs(c.mean / 0.25 - 1) < 0.1))
    mean = np.abs(np.mean(curves, axis=0))

    def draw(axes: Any) -> None:
        axes.loglog(STEPS, mean[:2], "o-", label=f"kink (theory k^1.5), measured k^{np.mean(by_k):.2f}")
        axes.loglog(SMOOTH_STEPS, mean[2:], "s-", label=f"smooth (theory k^2), measured k^{np.mean(smooth_k):.2f}")
        axes.set(xlabel="local steps k", ylabel="size of the bias")
        axes.legend()

    return Result(("exponent", "theory", "expected", "found"), rows, criteria, draw)
