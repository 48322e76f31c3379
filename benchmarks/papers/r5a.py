"""R5a: Local Adam against minibatch Adam, and both without adaptive steps, on ill-scaled features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlearn.algorithms.local_adam import LocalAdam
from fedlearn.algorithms.local_sgdm import LocalSGDM
from fedlearn.algorithms.minibatch_adam import MinibatchAdam
from fedlearn.algorithms.minibatch_sgdm import MinibatchSGDM
from fedlearn.contracts import LocalPlan, Vec
from fedlearn.data.store import ClientStore
from fedlearn.oracles.closed_form import LOGISTIC, ClosedForm
from fedlearn.tasks.linear_model import LinearModelTask
from fedlearn.vectors import dot

from .paper import About, Criterion, Result, estimate, search, trained

ABOUT = About("R5a", "Local Adam beats minibatch Adam where clients take many local steps in few rounds.",
              "Cheng, Glasgow: Convergence of Distributed Adaptive Optimization with Local Updates, ICLR 2025")
CLIENTS, FEATURES, SAMPLES, POOL, REPEATS, MARGIN = 16, 30, 2000, 20_000, 4, 2.0
FREEDOM, NOISE = 4.5, 0.25    # the noise is such that minibatch Adam has about its expected error at K=4
SCALES = np.geomspace(3.0, 0.03, FEATURES)
BUDGETS = {(4, 40): (0.077, 0.074), (16, 20): (0.058, 0.093), (64, 20): (0.035, 0.071), (128, 10): (0.036, 0.089)}
SGD = {"Local SGDM": "0.13 to 0.21", "minibatch SGDM": "0.20 to 0.23"}
ALGORITHMS: dict[str, Any] = {
    "Local Adam": lambda lr, **more: LocalAdam(lr=lr, lam=1e-3, **more),
    "minibatch Adam": lambda lr: MinibatchAdam(lr=lr, lam=1e-3),
    "Local SGDM": lambda lr: LocalSGDM(lr=lr), "minibatch SGDM": lambda lr: MinibatchSGDM(lr=lr)}
GRID = {"Adam": np.geomspace(0.003, 3.0, 12).tolist(), "SGDM": np.geomspace(0.003, 30.0, 12).tolist()}


class Noisy:
    """Logistic regression, all clients alike: a sample of the pool and heavy-tailed noise at every step.

    The model holds ``REPEATS`` independent runs side by side, which share nothing but the pool: every method here
    treats each coordinate by itself. The noise, of the scale of the feature, is drawn from many t-distributed vectors
    with a random sign, which is quicker than drawing anew.
    """

    def __init__(self, noise: float = NOISE) -> None:
        rng = np.random.default_rng(0)
        a = rng.standard_normal((SAMPLES, FEATURES)) * SCALES
        w = MARGIN * rng.standard_normal(FEATURES) / SCALES / FEATURES**0.5
        y = rng.random(SAMPLES) < 1 / (1 + np.exp(-a @ w))
        self.a, self.y = torch.from_numpy(a), torch.from_numpy(y.astype(np.float64))
        self.pool = torch.from_numpy(rng.standard_t(FREEDOM, (POOL, FEATURES)) * (noise * SCALES))
        store = ClientStore(self.a, self.y, np.array([0, SAMPLES]))
        self.whole = LinearModelTask(store, LOGISTIC, l2=1e-6, dtype=torch.float64)
        self.sizes: np.ndarray = np.ones(CLIENTS, dtype=np.int64)

    def initial(self, seed: int) -> Vec:
        """Return 0."""
        return torch.zeros(REPEATS * FEATURES, dtype=torch.float64)

    def oracle(self, kind: str = "auto") -> NoisyOracle:
        """Return the closed-form oracle; it stacks."""
        return NoisyOracle(self)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Any]:
        """Return int64 [3, repeats] of each step: the sample, the noise and its sign."""
        return list(rng.integers([[SAMPLES], [POOL], [2]], size=(local.steps_for(1), 3, REPEATS)))

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return F - F* over the pool, the mean of the repeats."""
        each = [self.whole.evaluate(part)["suboptimality"] for part in x.view(REPEATS, FEATURES)]
        return {"suboptimality": float(np.mean(each))}


class NoisyOracle(ClosedForm):
    """The gradient of one sample's loss plus the noise of the step, for each of the repeats."""

    def __init__(self, task: Noisy) -> None:
        super().__init__()
        self.task = task
        self.a = self.y = self.noise = torch.empty(0)

    def at(self, draws: Sequence[np.ndarray]) -> None:
        """Set the samples and the noise of each client that still works."""
        rows, noise, sign = torch.from_numpy(np.stack(draws, axis=1))
        self.a, self.y = self.task.a[rows], self.task.y[rows].unsqueeze(-1)
        self.noise = self.task.pool[noise].mul_(2 * sign.unsqueeze(-1) - 1)

    def _first_order(self, x: Vec) -> tuple[Tensor, Vec]:
        z = dot(self.a, x.view(self.a.shape))
        value = LOGISTIC.pointwise(z, self.y).mean((1, 2)).unsqueeze(-1)
        return value, ((torch.sigmoid(z) - self.y) * self.a).add_(self.noise).flatten(1)

    def _second_order(self, x: Vec, v: Vec) -> Vec:
        raise NotImplementedError("no Hessian is needed here")

    def _full(self, x: Vec) -> Vec:
        raise NotImplementedError("no full gradient is needed here")


def reproduce(seeds: int) -> Result:
    """Tune the step size of each method for each budget on one seed, and measure it on others."""
    task = Noisy()

    def error(name: str, lr: float, k: int, r: int, seed: int, **more: Any) -> float:
        run = trained(ALGORITHMS[name](lr, **more), task, rounds=r, steps=k, seed=seed)
        return float("inf") if run is None else run.final("test_suboptimality")

    def tuning(name: str, k: int, r: int, lr: float) -> float:
        return error(name, lr, k, r, 1000)

    found: dict[Any, list[float]] = {}
    rates, edges = {}, []
    for k, r in BUDGETS:
        for name in ALGORITHMS:
            best = search(GRID[name.split()[-1]], partial(tuning, name, k, r))
            rates[name, k] = best.value
            edges += [f"{name} at K={k}"] * best.edge
            found[name, k] = [error(name, best.value, k, r, seed) for seed in range(seeds)]
    rows: list[Any] = []
    for (k, r), both in BUDGETS.items():
        for name in ALGORITHMS:
            expected = dict(zip(("Local Adam", "minibatch Adam"), map(str, both), strict=True)) | SGD
            rows.append((f"K={k} R={r} {name}", f"{rates[name, k]:.2g}", expected[name], estimate(found[name, k])))
    tight = [error("Local Adam", rates["Local Adam", 64], 64, 20, seed, rho=1.0) for seed in range(seeds)]
    rows.append(("K=64 R=20 Local Adam, rho=1", f"{rates['Local Adam', 64]:.2g}", "worse", estimate(tight)))
    ratio = {k: estimate(a / b for a, b in zip(found["Local Adam", k], found["minibatch Adam", k], strict=True))
             for k, _ in BUDGETS}
    criteria = [Criterion(f"Local Adam / minibatch Adam at K={k} at most 0.7", ratio[k], ratio[k].mean <= 0.7)
                for k in (64, 128)]
    criteria.append(Criterion("Local Adam within 15% of minibatch Adam at K=4", ratio[4],
                              abs(ratio[4].mean - 1) <= 0.15))

    def draw(axes: Any) -> None:
        for name in ALGORITHMS:
            axes.loglog([k for k, _ in BUDGETS], [np.mean(found[name, k]) for k, _ in BUDGETS], "o-", label=name)
        axes.set(xlabel="local steps K", ylabel="suboptimality, tuned")
        axes.legend()

    finding = ("The scales of the optimum and of the noise do not come with the expected figures; the noise here was "
               "set once, by minibatch Adam's error at K=4 on the tuning seed. The less noise, the earlier Local Adam "
               "is ahead: at this level it is, already at K=4; with four times the noise it was behind there.")
    finding += f" The best step size lies at an end of its grid for {', '.join(edges)}." if edges else ""
    return Result(("budget and method", "step size", "expected", "found"), rows, criteria, draw, finding)
