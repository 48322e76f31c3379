"""R7a: on the hard instance with a smooth kink more clients help FedSN-Lite, and not Local SGD."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.special import spence
from torch import Tensor
from torch.nn import functional as F

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedsn_lite import FedSNLite
from fedlearn.contracts import Vec

from .paper import About, Criterion, Estimate, Result, estimate, search, trained
from .separable import Separable, SeparableOracle

ABOUT = About("R7a", "The quadratic model of FedSN-Lite has no iterate bias: it goes on gaining from more clients.",
              "Bullins et al.: A Stochastic Newton Algorithm for Distributed Convex Optimization, NeurIPS 2021; "
              "instance after Woodworth et al. 2020")
WIDTH = 0.05
BUDGETS = ((64, 8), (16, 8))
EXPECTED = {("Local SGD", 64, 8): (1.8e-3, 2.9e-3), ("FedSN-Lite", 64, 8): (5.2e-4, 8.1e-6),
            ("Local SGD", 16, 8): (5.8e-3, 5.1e-3), ("FedSN-Lite", 16, 8): (1.6e-3, 3.7e-5)}
METHODS = {"Local SGD": FedAvg, "FedSN-Lite": FedSNLite}
FEW, MANY = 64, 4096
ETAS = [float(eta) for eta in np.geomspace(0.03, 1.9, 8)]


class Instance(Separable):
    """mu/2 (x1 - 1)^2 + x2^2 / 2 + f(x3), f'' from 1/4 to 1/2 as a sigmoid of this width; noise N(0, 1) on x3.

    One run serves ``seeds`` seeds: F is a sum over coordinates, and there is an x3 with noise of its own for each.
    """

    def __init__(self, clients: int, k: int, r: int, seeds: int) -> None:
        mu = 0.2 * k ** (-1 / 3) * r ** (-2 / 3)
        self.plain, rest = torch.tensor([mu, 1.0], dtype=torch.float64), torch.zeros(seeds, dtype=torch.float64)
        centre = torch.cat([torch.tensor([1.0, 0.0]), rest])
        x0, noise = torch.cat([torch.tensor([0.0, 0.1]), rest]), torch.cat([torch.zeros(2), rest + 1])
        super().__init__(clients, x0, noise, self.sloped, self.rough, centre)
        # The minimiser of f: its slope there is 0.
        z = 0.0
        for _ in range(100):
            z = -WIDTH * float(np.logaddexp(0, z / WIDTH))
        self.floor = primitive(np.array(z))

    def sloped(self, z: Tensor) -> Tensor:
        """Return F' entrywise."""
        kinks = (z[..., 2:] + WIDTH * F.softplus(z[..., 2:] / WIDTH)) / 4
        return torch.cat([z[..., :2] * self.plain, kinks], -1)

    def rough(self, z: Tensor) -> Tensor:
        """Return about the value of each coordinate: it only enters the training loss, which nobody looks at here."""
        return self.sloped(z) * z / 2

    def oracle(self, kind: str = "auto") -> SeparableOracle:
        """Return the closed-form oracle with second derivatives."""
        return Curved(self)

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return F(x) - F* for each seed."""
        z = (x - self.centre).numpy()
        common = float((self.plain.numpy() * z[:2] ** 2).sum() / 2)
        return {f"seed{i}": common + float(f - self.floor) for i, f in enumerate(primitive(z[2:]))}


class Curved(SeparableOracle):
    """Also knows F''."""

    def _second_order(self, x: Vec, v: Vec) -> Vec:
        assert isinstance(self.task, Instance)
        z = x - self.task.centre
        kinks = (1 + torch.sigmoid(z[..., 2:] / WIDTH)) / 4
        return torch.cat([self.task.plain.expand_as(z[..., :2]), kinks], -1) * v


def primitive(z: np.ndarray) -> np.ndarray:
    """Return the integral of f', up to a constant: softplus integrates to minus a dilogarithm."""
    return z**2 / 8 - WIDTH**2 / 4 * spence(1 + np.exp(z / WIDTH))


def errors(method: str, clients: int, k: int, r: int, eta: float, seed: int, seeds: int) -> np.ndarray:
    """Return F(x) - F* of each seed."""
    history = trained(METHODS[method](lr=eta), Instance(clients, k, r, seeds), rounds=r, steps=k, seed=seed)
    return np.array([np.inf if history is None else history.final(f"test_seed{i}") for i in range(seeds)])


def measured(method: str, clients: int, k: int, r: int, seeds: int) -> np.ndarray:
    """Return the errors with the best eta of a tuning seed."""
    best = search(ETAS, lambda eta: float(errors(method, clients, k, r, eta, 1000, seeds).mean()))
    return errors(method, clients, k, r, best.value, 0, seeds)


def gain(few: np.ndarray, many: np.ndarray) -> Estimate:
    """Return the ratio of the mean errors, with a 95% bootstrap interval over the seeds."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(few), size=(4000, len(few)))
    low, high = np.quantile(few[rows].mean(1) / many[rows].mean(1), [0.025, 0.975])
    return Estimate(float(few.mean() / many.mean()), float(low), float(high))


def reproduce(seeds: int) -> Result:
    """Tune eta for each method, number of clients and budget; compare 64 with 4096 clients."""
    seeds = max(16, seeds)  # they come nearly free
    found = {(name, m, k, r): measured(name, m, k, r, seeds) for k, r in BUDGETS for name in METHODS
             for m in (FEW, MANY)}
    rows, criteria = [], []
    for (name, k, r), expected in EXPECTED.items():
        few, many = found[name, FEW, k, r], found[name, MANY, k, r]
        rows += [(f"{name}, K={k} R={r}, M={m}", value, estimate(of))
                 for m, value, of in ((FEW, expected[0], few), (MANY, expected[1], many))]
        ratio = gain(few, many)
        if name == "Local SGD":
            criteria.append(Criterion(f"Local SGD changes by less than 2 from M=64 to 4096, K={k}", ratio,
                                      0.5 < ratio.mean < 2))
        else:
            criteria.append(Criterion(f"FedSN-Lite improves by more than 15, K={k}", ratio, ratio.mean > 15))

    def draw(axes: Any) -> None:
        for name in METHODS:
            for k, r in BUDGETS:
                axes.loglog([FEW, MANY], [found[name, m, k, r].mean() for m in (FEW, MANY)], "o-",
                            label=f"{name}, K={k}, R={r}")
        axes.set(xlabel="clients M", ylabel="suboptimality")
        axes.legend()

    finding = ("" if all(c.holds for c in criteria) else "FedSN-Lite gains from more clients at both K, and Local SGD "
               "does not; how much depends on the grid of eta, 8 values tuned on one seed, and on few seeds.")
    return Result(("quantity", "expected", "found"), rows, criteria, draw, finding)
