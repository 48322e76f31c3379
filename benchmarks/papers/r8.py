"""R8: working together does not help online learners with gradients, and helps bandits the more the higher d."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedosgd import FedOSGD
from fedlearn.tasks.online import Online

from .paper import About, Criterion, Result, estimate, search, trained

ABOUT = About("R8", "With first-order feedback collaboration cannot help online; with two-point feedback it does, in "
              "high dimensions.",
              "Patel, Wang, Saha, Srebro: Federated Online and Bandit Convex Optimization, ICML 2023")
MACHINES, STEPS = 16, 600
APART = STEPS       # an interval as long as the game: everybody plays alone
ETAS = [float(eta) for eta in np.geomspace(5e-4, 0.5, 13)]
EXPECTED_RATIOS = {4: 1.46, 20: 3.0, 100: 3.5, 400: 2.7}
EXPECTED_REGRET = {APART: 0.203, 1: 0.048, 5: 0.058, 20: 0.075}


@cache
def regret(feedback: str, d: int, K: int, eta: float, seed: int) -> float:
    """Return the average regret; the comparator's own loss is 0."""
    task = Online(dimension=d, rank=4).build(MACHINES, seed, torch.float64)
    algorithm = FedOSGD(lr=eta, delta=1e-3, radius=1.0, feedback=feedback)
    history = trained(algorithm, task, rounds=STEPS // K, steps=K, seed=seed)
    return float("inf") if history is None else history.final("played_loss")


def measured(feedback: str, d: int, K: int, seeds: int) -> np.ndarray:
    """Return the regrets with the best eta of a tuning seed."""
    # With gradients the interval does not matter, which is what is checked: tune the quickest.
    at = APART if feedback == "first_order" else K
    best = search(ETAS, lambda eta: regret(feedback, d, at, eta, 1000))
    return np.array([regret(feedback, d, K, best.value, seed) for seed in range(seeds)])


def reproduce(seeds: int) -> Result:
    """Tune eta for each setting, then compare regrets on the same games."""
    rows, criteria = [], []
    first = {K: measured("first_order", 100, K, seeds) for K in (APART, 1, 5, 20)}
    apart = max(float(np.abs(first[K] - first[APART]).max()) for K in (1, 5, 20))
    rows += [(f"first-order, {'alone' if K == APART else f'K={K}'}", 0.0261, estimate(first[K])) for K in first]
    criteria.append(Criterion("first-order: largest difference to playing alone < 1e-12", f"{apart:.1e}",
                              apart < 1e-12))
    two = {(d, K): measured("two_point", d, K, seeds) for d in EXPECTED_RATIOS
           for K in ((APART, 1, 5, 20) if d == 100 else (APART, 5))}
    rows += [(f"two-point d=100, {'alone' if K == APART else f'K={K}'}", value, estimate(two[100, K]))
             for K, value in EXPECTED_REGRET.items()]
    ratios = {d: estimate(two[d, APART] / two[d, 5]) for d in EXPECTED_RATIOS}
    rows += [(f"two-point d={d}, alone / together at K=5", EXPECTED_RATIOS[d], ratio) for d, ratio in ratios.items()]
    criteria += [Criterion("two-point: alone / together at d=100 > 2.5", ratios[100], ratios[100].mean > 2.5),
                 Criterion("two-point: alone / together at d=4 < 2", ratios[4], ratios[4].mean < 2)]
    growth = [estimate(two[100, b] - two[100, a]) for a, b in ((1, 5), (5, 20))]
    criteria += [Criterion(f"two-point: regret grows from K={a} to K={b}", step, step.mean > 0)
                 for (a, b), step in zip(((1, 5), (5, 20)), growth, strict=True)]

    def draw(axes: Any) -> None:
        for K in (APART, 5):
            axes.loglog(list(EXPECTED_RATIOS), [two[d, K].mean() for d in EXPECTED_RATIOS], "o-",
                        label="two-point, alone" if K == APART else f"two-point, together every {K} steps")
        axes.axhline(first[APART].mean(), color="grey", linestyle=":", label="gradients (d=100), alone or together")
        axes.set(xlabel="dimension", ylabel="average regret")
        axes.legend()

    return Result(("quantity", "expected", "found"), rows, criteria, draw)
