"""R1b: the lower bound of Local SGD on its hard instance, and that more clients stop helping.

The instance is after Woodworth et al., "Is Local SGD Better than Minibatch SGD?", ICML 2020.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.contracts import Vec

from .paper import About, Criterion, Result, estimate, trained
from .separable import Separable, kink

ABOUT = About("R1b", "On the hard instance the error of Local SGD scales as K^(-1/3) R^(-2/3), whatever M.",
              "Glasgow, Yuan, Ma: Sharp Bounds for Federated Averaging, AISTATS 2022")
BUDGETS = {(4, 16): 0.056, (16, 16): 0.054, (64, 16): 0.051, (16, 4): 0.044, (16, 64): 0.059}
CLIENTS = {4: 9.8e-3, 32: 5.5e-3, 256: 3.3e-3, 2048: 3.6e-3}
TUNED_ON = 256      # clients at most; more do not move the best eta, since averaging does not remove the bias
ETAS = list(np.geomspace(2e-3, 1.0, 14))
MUS = (0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56)   # times K^(-1/3) R^(-2/3): where the worst one lies


class Instance(Separable):
    """The instance with H = B = sigma = 1, c = 0.1, for several mu at once.

    F is a sum over coordinates: one run serves all mu, the first coordinates being x1 for each of them.
    """

    def __init__(self, clients: int, k: int, r: int) -> None:
        self.mus = torch.tensor(MUS, dtype=torch.float64) * k ** (-1 / 3) * r ** (-2 / 3)
        n = len(self.mus)
        left, right = (torch.cat([self.mus, torch.tensor([1.0, curved])]) for curved in (0.25, 0.5))
        centre = torch.cat([torch.ones(n), torch.zeros(2)]).double()
        x0, noise = torch.zeros(n + 2), torch.zeros(n + 2)
        x0[n], noise[n + 1] = 0.1, 1.0
        super().__init__(clients, x0, noise, *kink(left, right), centre)

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return F(x) for each mu."""
        each, n = self.value(x - self.centre), len(self.mus)
        return {f"mu{i}": float(each[i] + each[n:].sum()) for i in range(n)}


def reproduce(seeds: int) -> Result:
    """For each mu take the best eta, then the worst mu; measure this pair with other seeds."""

    def errors_of(clients: int, k: int, r: int, eta: float, seed: int) -> list[float]:
        history = trained(FedAvg(lr=eta), Instance(clients, k, r), rounds=r, steps=k, seed=seed)
        return [np.inf if history is None else history.final(f"test_mu{i}") for i in range(len(MUS))]

    def measured(clients: int, k: int, r: int) -> list[float]:
        grid = np.array([errors_of(min(clients, TUNED_ON), k, r, eta, 1000) for eta in ETAS])
        worst = int(np.nanmin(grid, axis=0).argmax())
        eta = ETAS[int(grid[:, worst].argmin())]
        return [errors_of(clients, k, r, eta, seed)[worst] for seed in range(seeds)]

    rows, criteria, ratios = [], [], {}
    errors = {(m, 16, 16): measured(m, 16, 16) for m in CLIENTS}
    for (k, r), expected in BUDGETS.items():
        values = errors.get((2048, k, r)) or measured(2048, k, r)
        ratio = estimate(v / (k ** (-1 / 3) * r ** (-2 / 3)) for v in values)
        ratios[k, r] = ratio.mean
        rows.append((f"K={k} R={r} M=2048: error / (K^-1/3 R^-2/3)", expected, ratio))
        criteria.append(Criterion(f"ratio at K={k}, R={r} in [0.03, 0.09]", ratio, 0.03 <= ratio.mean <= 0.09))
    rows += [(f"K=16 R=16 M={m}: error", CLIENTS[m], estimate(errors[m, 16, 16])) for m in CLIENTS]
    share = estimate(a / b for a, b in zip(errors[2048, 16, 16], errors[256, 16, 16], strict=True))
    criteria.append(Criterion("error(M=2048) > 0.7 error(M=256)", share, share.mean > 0.7))

    def draw(axes: Any) -> None:
        axes.loglog(list(CLIENTS), [np.mean(errors[m, 16, 16]) for m in CLIENTS], "o-", label="Local SGD, tuned")
        axes.loglog(list(CLIENTS), [np.mean(errors[4, 16, 16]) * (4 / m) ** 0.5 for m in CLIENTS], ":",
                    label="if averaging went on helping as M^-1/2")
        axes.set(xlabel="clients M", ylabel="suboptimality at K = R = 16")
        axes.legend()

    return Result(("quantity", "expected", "found"), rows, criteria, draw)
