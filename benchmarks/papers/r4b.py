"""R4b: where Local GD ends, for clients whose optima and Hessians differ."""

from __future__ import annotations

from typing import Any

import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.tasks.quadratic import QuadraticTask

from .paper import About, Criterion, Result, trained

ABOUT = About("R4b", "The fixed point of Local GD lies between the optimum of the mean and the mean of the optima.",
              "Patel et al., The Limits and Potentials of Local SGD, COLT 2024, Proposition 19 and its figure")
OPTIMA = torch.tensor([[5, 5], [15, 5], [15, 10], [10, 20], [5, 15]], dtype=torch.float64)
CURVED = torch.tensor([[1, 2], [1, 1], [6, 1], [4, 1], [3, 5]], dtype=torch.float64)
EXPECTED = {(0, 1): 0.0, (0, 2): 0.649, (0, 10): 1.448, (0, 100): 1.414, (1, 2): 0.274, (1, 100): 0.419,
            (2, 2): 0.127, (2, 10): 0.0425, (2, 100): 0.0047}


def fixed_point(eta: float, k: int) -> torch.Tensor:
    """Return C^-1 mean_m C_m x*_m with C_m = I - (I - eta A_m)^K, for diagonal A_m."""
    c = 1 - (1 - eta * CURVED) ** k
    return (c * OPTIMA).mean(0) / c.mean(0)


def reproduce(seeds: int) -> Result:
    """Run Local GD to its end and compare it with the closed form. No randomness enters."""
    task = QuadraticTask(torch.diag_embed(CURVED), OPTIMA, torch.zeros(2, dtype=torch.float64))
    rows, agree, away = [], [], {}
    for (p, k), expected in EXPECTED.items():
        eta = 1 / (7 * k**p)
        # The fixed point does not depend on the outer step: the largest safe one gets there soonest.
        outer = 1 / float((1 - (1 - eta * CURVED) ** k).mean(0).max())
        history = trained(FedAvg(lr=eta, server_lr=outer), task, rounds=200, steps=k)
        assert history is not None
        away[p, k] = float((history.x - task.optimum).norm())
        agree.append(float((history.x - fixed_point(eta, k)).norm()))
        rows.append((f"1/(7 K^{p})", k, expected, f"{away[p, k]:.4f}", f"{agree[-1]:.0e}"))
    close = all(abs(away[key] - expected) <= 0.006 * expected + 1e-9 for key, expected in EXPECTED.items())
    to_mean = float((fixed_point(1 / 7, 100) - OPTIMA.mean(0)).norm())
    criteria = [Criterion("ends within 1e-8 of the closed form", f"at most {max(agree):.0e}", max(agree) < 1e-8),
                Criterion("distances to x* as expected, to their last digit", "see the table", close),
                Criterion("at K=100, eta=1/7 it is the mean of the optima, to 1e-7", f"{to_mean:.0e}", to_mean < 1e-7)]

    def draw(axes: Any) -> None:
        ks = range(1, 101)
        for p in (0.0, 0.5, 1.0, 1.5, 2.0):
            ends = [float((fixed_point(1 / (7 * k**p), k) - task.optimum).norm()) for k in ks]
            axes.plot(ks, ends, label=f"eta = 1/(7 K^{p:g})")
        for (_, k), value in away.items():
            axes.plot(k, value, "k.", markersize=5)
        axes.set(xscale="log", xlabel="local steps K (dots: runs, lines: closed form)", ylabel="distance to x*")
        axes.legend()

    return Result(("eta", "K", "expected |x - x*|", "|x - x*|", "to the closed form"), rows, criteria, draw)
