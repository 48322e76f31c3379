"""D2: Local Adam against minibatch Adam on real text, whose classes (the next byte) are heavy-tailed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from fedlearn.algorithms.local_adam import LocalAdam
from fedlearn.algorithms.minibatch_adam import MinibatchAdam
from fedlearn.config.assemble import experiment
from fedlearn.config.compose import compose
from fedlearn.policies.sampling import UniformSampling

from .paper import About, Criterion, Result, estimate, search, trained

ABOUT = About("D2", "On text, Local Adam is ahead of minibatch Adam at equal rounds and equal gradients.",
              "After Cheng, Glasgow: Convergence of Distributed Adaptive Optimization with Local Updates, ICLR 2025")
TASK = ["task=text", "task.length=16", "task.samples_per_client=64", "model.embedding=16", "model.width=32"]
ROUNDS, STEPS, COHORT, BATCH = 10, 16, 6, 8
GRID = np.geomspace(1e-3, 1.0, 10).tolist()     # the same for both; each tries five of them
ALGORITHMS: dict[str, Any] = {"Local Adam": LocalAdam, "minibatch Adam": MinibatchAdam}


def reproduce(seeds: int) -> Result:
    """Tune the step size of both with as many trials on one seed, and compare them on others."""
    task = experiment(compose(TASK)).task

    def history(name: str, lr: float, seed: int, every: int = 0) -> Any:
        return trained(ALGORITHMS[name](lr=lr), task, rounds=ROUNDS, steps=STEPS, batch=BATCH, seed=seed,
                       cohort=COHORT, sampling=UniformSampling(), stack="auto", every=every)

    def loss(run: Any) -> float:
        return float("inf") if run is None else run.final("test_loss")

    def tuning(name: str, lr: float) -> float:
        return loss(history(name, lr, 1000))

    rows: list[Any] = []
    losses, curves = {}, {}
    for name in ALGORITHMS:
        best = search(GRID, partial(tuning, name))
        runs = [history(name, best.value, seed, every=3) for seed in range(seeds)]
        losses[name] = [loss(run) for run in runs]
        curves[name] = [(line["round"], line["test_loss"]) for line in runs[0].metrics if "test_loss" in line] \
            if runs[0] else []
        right = estimate(float("nan") if run is None else run.final("test_accuracy") for run in runs)
        step_size = f"{best.value:.2g}" + " (end of the grid)" * best.edge
        rows.append((name, step_size, estimate(losses[name]), right))
    ahead = estimate(a - b for a, b in zip(losses["Local Adam"], losses["minibatch Adam"], strict=True))
    rows.append(("difference", "", ahead, ""))
    criteria = [Criterion("test loss of Local Adam minus minibatch Adam's: the whole interval below 0", ahead,
                          ahead.high < 0)]

    def draw(axes: Any) -> None:
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), "o-", label=f"{name}, tuned")
        axes.set(xlabel=f"rounds of {COHORT} clients with K={STEPS} gradients each", ylabel="test loss")
        axes.legend()

    return Result(("method", "step size", "test loss", "test accuracy"), rows, criteria, draw)
