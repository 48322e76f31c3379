"""R9: agents that leave once content break FedAvg; from ADA-GD nobody leaves, and everybody is content."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.ada_gd import AdaGD
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.contracts import Vec
from fedlearn.modifiers.defection import Defection
from fedlearn.tasks.quadratic import QuadraticTask
from fedlearn.tracking import Tracker

from .paper import About, Criterion, Result, estimate, trained

ABOUT = About("R9", "Descent on the mean lets agents leave, far from their optimum; ADA-GD keeps and serves all.",
              "Han, Patel, Shao, Wang: On the Effect of Defections in Federated Learning, 2023")
AGENTS, DIMENSION, EPS, ETA = 10, 20, 0.01, 0.04
STARTS = 4          # random instances and starts for each seed
ROUNDS, OFTEN = 2000, 25


class Planes(QuadraticTask):
    """F_m = 1/2 <a_m, x - w>^2 with unit a_m, and a start at which every F_m is above 2 eps."""

    def __init__(self, rng: np.random.Generator) -> None:
        a = rng.standard_normal((AGENTS, DIMENSION))
        self.a = a / np.linalg.norm(a, axis=1, keepdims=True)
        self.w, self.tries = rng.standard_normal(DIMENSION), 0
        while True:
            start, self.tries = rng.standard_normal(DIMENSION), self.tries + 1
            if self.losses(start).min() > 2 * EPS:
                break
        A = torch.from_numpy(self.a[:, :, None] * self.a[:, None, :])
        super().__init__(A, torch.from_numpy(np.tile(self.w, (AGENTS, 1))), torch.from_numpy(start))

    def losses(self, x: np.ndarray) -> np.ndarray:
        """Return F_m(x) of all agents."""
        return (self.a @ (x - self.w)) ** 2 / 2

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return the largest F_m in units of eps."""
        return {"worst": float(self.losses(x.numpy()).max()) / EPS}


class Over(Exception):
    """Nothing changes any more."""


class Watch(Tracker):
    """Ends a run once the model stays as it is."""

    def __init__(self) -> None:
        self.last: Mapping[str, Any] = {}

    def started(self, folder: Any, config: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def round(self, metrics: Mapping[str, Any]) -> None:
        """Look at the evaluated lines."""
        if "test_worst" not in metrics or "left" not in metrics:
            return
        before, self.last = self.last, metrics
        if before and before["test_worst"] == metrics["test_worst"]:
            raise Over

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Nothing to do."""


def ends(algorithm: Any, seed: int) -> list[tuple[float, float]]:
    """Return the largest loss in units of eps, and how many left, of each start of a seed."""
    found = []
    for i in range(STARTS):
        watch = Watch()
        with suppress(Over):
            trained(algorithm, Planes(np.random.default_rng([seed, i])), rounds=ROUNDS, steps=1, batch=None,
                    every=OFTEN, modifiers={"defection": Defection(EPS)}, trackers=[watch])
        found.append((watch.last["test_worst"], watch.last["left"]))
    return found


def reproduce(seeds: int) -> Result:
    """Run both from the same starts until the model stays."""
    worst, left = {}, {}
    for name, algorithm in (("FedAvg", FedAvg(lr=ETA)), ("ADA-GD", AdaGD(lr=ETA, eps=EPS))):
        each = np.array([ends(algorithm, seed) for seed in range(seeds)])
        worst[name], left[name] = each[..., 0], each[..., 1]
    runs = worst["FedAvg"].size
    medians = estimate(np.median(worst["FedAvg"], axis=1))
    median = float(np.median(worst["FedAvg"]))
    rows = [("FedAvg: runs with defections", "100 of 100", f"{int((left['FedAvg'] > 0).sum())} of {runs}"),
            ("FedAvg: median of max F_m / eps", 45.0, median),
            ("FedAvg: 90% quantile of it", 146.0, float(np.quantile(worst["FedAvg"], 0.9))),
            ("ADA-GD: agents that left", 0, int(left["ADA-GD"].sum())),
            ("ADA-GD: largest max F_m / eps", 1.75, float(worst["ADA-GD"].max()))]
    criteria = [Criterion("ADA-GD: nobody leaves", f"{int(left['ADA-GD'].sum())} of {runs * AGENTS}",
                          not left["ADA-GD"].any()),
                Criterion("ADA-GD: max F_m <= 2 eps, in units of eps", estimate(worst["ADA-GD"].max(axis=1)),
                          bool(worst["ADA-GD"].max() <= 2)),
                Criterion("FedAvg: median of max F_m > 10 eps, in units of eps (interval: of the seeds' medians)",
                          type(medians)(median, medians.low, medians.high), median > 10)]

    def draw(axes: Any) -> None:
        for name in worst:
            axes.step(np.sort(worst[name], axis=None), np.arange(1, runs + 1) / runs, where="post", label=name)
        axes.axvline(2, color="grey", linestyle=":", label="2 eps")
        axes.set(xscale="log", xlabel="max F_m / eps at the end", ylabel="share of the runs below")
        axes.legend()

    finding = f"{runs} starts in all, where the expected figures are of 100: every round of a run is a real one."
    return Result(("quantity", "expected", "found"), rows, criteria, draw, finding)
