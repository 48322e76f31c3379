"""R2b: local steps win while clients are alike, and lose as they differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.minibatch_acsa import MinibatchACSA
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.contracts import ServerAlgorithm
from fedlearn.data.store import ClientStore
from fedlearn.oracles.closed_form import LOGISTIC
from fedlearn.tasks.linear_model import LinearModelTask

from .paper import About, Criterion, Result, estimate, train, tune

ABOUT = About("R2b", "Local SGD beats minibatch methods while the clients' tasks are mixed, and is the worst when each "
              "has its own.", "Woodworth, Patel, Srebro: Minibatch vs Local SGD for Heterogeneous Distributed "
              "Learning, NeurIPS 2020")
M, D, SAMPLES, BATCH, K, R = 10, 10, 400, 8, 40, 4
MIXED = (0.0, 0.3, 0.6, 1.0)       # p: the share of samples from the mixture of all tasks
CONDITION, DIFFER, SPREAD, SHARED, L2 = 20, 1.35, 2.5, 0.4, 1e-4
METHODS: dict[str, tuple[Callable[[float], ServerAlgorithm], np.ndarray]] = {
    "Local SGD": (lambda eta: FedAvg(lr=eta), np.geomspace(0.2, 20, 9)),
    "minibatch SGD": (lambda eta: MinibatchSGD(lr=eta), np.geomspace(4, 256, 9)),
    "minibatch AC-SA": (lambda eta: MinibatchACSA(lr=eta), np.geomspace(4, 256, 9)),
    "SCAFFOLD": (lambda eta: Scaffold(lr=eta), np.geomspace(0.2, 20, 9))}
EXPECTED = {"Local SGD": {1.0: 7.4e-4, 0.0: 4.9e-3}, "minibatch SGD": {1.0: 2.8e-3, 0.0: 2.9e-3},
            "minibatch AC-SA": {1.0: 1.9e-3, 0.0: 1.3e-3}, "SCAFFOLD": {1.0: 7.8e-4, 0.0: 1.9e-3}}


def problem(p: float, seed: int) -> LinearModelTask:
    """Return logistic regression in which every client has a task of its own, or a mixture of all.

    A task is a distribution of features, normal with standard deviations that are geometric up to factors
    exp(DIFFER g), of norm 1, and of labels given them, by weights of which SHARED is common to all tasks. A sample of
    client m is of task m, or, with probability p, of a task drawn at random.
    """
    rng = np.random.default_rng([2021, seed])
    scale = np.geomspace(1, CONDITION**-0.5, D)
    common, own = rng.standard_normal(D), rng.standard_normal((M, D))
    weights = SPREAD * (SHARED * common + (1 - SHARED**2) ** 0.5 * own) * np.linalg.norm(scale) / (scale * D**0.5)
    scales = scale * np.exp(DIFFER * rng.standard_normal((M, D)))
    scales /= np.linalg.norm(scales, axis=1, keepdims=True)
    pairs = []
    for m in range(M):
        task = np.where(rng.random(SAMPLES) < p, rng.integers(M, size=SAMPLES), m)
        features = rng.standard_normal((SAMPLES, D)) * scales[task]
        score = (features * weights[task]).sum(1)
        pairs.append((features, (rng.random(SAMPLES) < 1 / (1 + np.exp(-score))).astype(np.float64)))
    return LinearModelTask(ClientStore.from_clients(pairs), LOGISTIC, L2, dtype=torch.float64)


def reproduce(seeds: int) -> Result:
    """For every seed draw a problem, tune every method on it, and train with other mini-batches."""
    zeta, found, edges = {}, {name: {} for name in METHODS}, []
    for p in MIXED:
        problems = [problem(p, seed) for seed in range(seeds)]
        zeta[p] = estimate(task.constants()["zeta_star"] for task in problems)
        for name, (method, grid) in METHODS.items():
            errors = []
            for seed, task in enumerate(problems):
                def error(eta: float, batches: int, method: Any = method, task: Any = task) -> float:
                    return train(method(eta), task, rounds=R, steps=K, batch=BATCH, seed=batches)

                best = tune(list(grid), partial(error, batches=1000))
                edges += [f"{name} at p = {p:g}"] * best.edge
                errors.append(error(best.value, seed))
            found[name][p] = estimate(errors)
    mean = {name: {p: e.mean for p, e in by.items()} for name, by in found.items()}
    others = ("minibatch SGD", "minibatch AC-SA")
    gain = {(name, p): mean[name][p] / mean["Local SGD"][p] for name in others for p in MIXED if p >= 0.6}
    least = min(gain, key=lambda key: gain[key])
    flat = max(mean["minibatch SGD"].values()) / min(mean["minibatch SGD"].values())
    worst = max(mean, key=lambda name: mean[name][0.0])
    criteria = [
        Criterion("Local SGD at least 2x better than minibatch SGD and AC-SA at p >= 0.6",
                  f"least {gain[least]:.2f}x, against {least[0]} at p = {least[1]:g}", gain[least] >= 2),
        Criterion("Local SGD is the worst of the four at p = 0", f"worst: {worst}", worst == "Local SGD"),
        Criterion("minibatch SGD changes by less than 1.5x over p", f"{flat:.2f}x", flat < 1.5)]
    rows = [[name, *(found[name][p] for p in MIXED), f"{EXPECTED[name][0.0]:.1e} / {EXPECTED[name][1.0]:.1e}"]
            for name in METHODS]
    rows.append(["zeta*", *(zeta[p] for p in MIXED), "0.087 / 0.020"])

    def draw(axes: Any) -> None:
        for name, by in found.items():
            middle, low, high = (np.array([getattr(by[p], what) for p in MIXED]) for what in ("mean", "low", "high"))
            axes.errorbar([zeta[p].mean for p in MIXED], middle, [middle - low, high - middle], label=name, capsize=2)
        axes.set(yscale="log", xlabel="heterogeneity at the optimum, zeta*", ylabel=f"suboptimality, K={K}, R={R}")
        axes.legend()

    note = f"The best step lay at an end of its grid for {', '.join(sorted(set(edges)))}." if edges else ""
    return Result(("suboptimality", *(f"p = {p:g}" for p in MIXED), "expected at p = 0 / 1"), rows, criteria, draw,
                  note)
