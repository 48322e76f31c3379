"""R5b: without clipping, the tails of the noise become the tails of Local SGDM's error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.local_sgdm import LocalSGDM
from fedlearn.contracts import LocalPlan

from .paper import About, Criterion, Result, estimate, trained
from .separable import Separable

ABOUT = About("R5b", "Clipping keeps Local SGDM's error small with high probability under heavy-tailed noise.",
              "Cheng, Glasgow: Convergence of Distributed Adaptive Optimization with Local Updates, ICLR 2025")
CLIENTS, STEPS, ROUNDS, LR = 4, 8, 10, 0.1
REPEATS, FREEDOM, QUANTILE = 10_000, 2.1, 0.999     # repeats of one seed: one coordinate each
RHOS: dict[float | None, str] = {None: "2.24", 5.0: "0.21", 2.0: "0.11"}
A, ALPHA, BOUND, LARGE_LR = 30.0, 4, 0.1, 0.5     # the instance of Appendix D


class HeavyTailed(Separable):
    """Coordinates x^2 / 2 from 0, with Student's t as noise."""

    def __init__(self) -> None:
        zeros = torch.zeros(REPEATS, dtype=torch.float64)
        super().__init__(CLIENTS, zeros, zeros + 1, lambda z: z.clone(), lambda z: z.square() / 2)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> list[np.ndarray]:
        """Return t-distributed noise [P] of each step."""
        return list(rng.standard_t(FREEDOM, (local.steps_for(1), REPEATS)))

    def evaluate(self, x: torch.Tensor) -> dict[str, float]:
        """Return a quantile of F over the repeats."""
        return {"suboptimality": float(np.quantile(x.square().numpy() / 2, QUANTILE))}


class LastStep(Separable):
    """The instance of Appendix D: no noise but at the last step, where it is A, -A or 0, one coordinate each.

    So every outcome is computed once, and counts with its probability: 1 / (2 A^alpha) for A and for -A.
    """

    def __init__(self) -> None:
        super().__init__(1, torch.zeros(3), torch.ones(3), lambda z: z.clone(), lambda z: z.square() / 2)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> list[np.ndarray]:
        """Return no noise, and the three outcomes at the last step of the last round."""
        steps = local.steps_for(1)
        noise = np.zeros((steps, 3))
        if local.before + steps == STEPS * ROUNDS:
            noise[-1] = A, -A, 0.0
        return list(noise)

    def evaluate(self, x: torch.Tensor) -> dict[str, float]:
        """Return the probability that F is above the bound."""
        rare = 1 / (2 * A**ALPHA)
        chances = torch.tensor([rare, rare, 1 - 2 * rare], dtype=torch.float64)
        return {"suboptimality": float(chances[x.square() / 2 > BOUND].sum())}


def reproduce(seeds: int) -> Result:
    """Measure a high quantile of the error with and without clipping; one step size for all."""
    quantile = {}
    for rho in RHOS:
        algorithm = LocalSGDM(lr=LR, rho=rho)
        runs = [trained(algorithm, HeavyTailed(), rounds=ROUNDS, steps=STEPS, seed=seed) for seed in range(seeds)]
        quantile[rho] = [run.final("test_suboptimality") if run else float("inf") for run in runs]
    chance = {}
    for rho in (None, 5.0):
        run = trained(LocalSGDM(lr=LARGE_LR, rho=rho), LastStep(), rounds=ROUNDS, steps=STEPS)
        chance[rho] = run.final("test_suboptimality") if run else 1.0
    rows: list[Any] = [(f"99.9% quantile of F, rho={'none' if rho is None else f'{rho:g}'}", expected,
                        estimate(quantile[rho])) for rho, expected in RHOS.items()]
    rows += [("Appendix D: P(F > 0.1), no clipping", "1.2e-6", f"{chance[None]:.3g}"),
             ("Appendix D: P(F > 0.1), rho=5", "0", f"{chance[5.0]:.3g}")]
    shares = {rho: estimate(a / b for a, b in zip(quantile[rho], quantile[None], strict=True)) for rho in (5.0, 2.0)}
    criteria = [Criterion(f"99.9% quantile with rho={rho:g} below 0.2 of that without clipping", share,
                          share.mean < 0.2) for rho, share in shares.items()]
    criteria.append(Criterion("Appendix D: P(F > 0.1) = A^-4 = 1.2e-6 without clipping, 0 with",
                              f"{chance[None]:.3g} and {chance[5.0]:.3g}",
                              abs(chance[None] * A**ALPHA - 1) < 1e-9 and chance[5.0] == 0))

    def draw(axes: Any) -> None:
        names = ["none" if rho is None else f"{rho:g}" for rho in RHOS]
        means = [float(np.mean(quantile[rho])) for rho in RHOS]
        axes.bar(names, means)
        axes.set(xlabel="clipping threshold rho", ylabel="99.9% quantile of F", yscale="log")

    return Result(("quantity", "expected", "found"), rows, criteria, draw)
