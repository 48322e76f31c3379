"""D9: online learners on a stream of Fashion-MNIST, alone or together, with gradients or with two values of a loss."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from fedlearn.algorithms.fedosgd import FedOSGD
from fedlearn.contracts import LocalPlan
from fedlearn.tasks.fashion_mnist import FashionMNIST

from .paper import About, Criterion, Estimate, Result, Tuned, estimate, search, trained
from .pooled import Drawn, Pooled

ABOUT = About("D9", "On a stream of Fashion-MNIST, averaging over machines gains online learners more with two values "
              "of the loss than with gradients.",
              "After Patel, Wang, Saha, Srebro: Federated Online and Bandit Convex Optimization, ICML 2023")
CLASSES = (0, 6)    # T-shirts and shirts, which look alike
MACHINES, STEPS, OFTEN, L2, TUNING = 16, 600, 5, 1e-3, 1000
APART = STEPS       # an interval as long as the game: everybody plays alone
POOLING = {17: 7, 197: 2}       # d, with a constant feature, and the side of the squares whose mean is a feature
STREAMS = ("own", "same")       # the machines meet samples of their own, or all the same one at a step
FEEDBACK = {"first_order": "gradient", "two_point": "two values"}
ETAS = [float(eta) for eta in np.geomspace(0.01, 40, 12)]      # six of them are tried for each setting


class Stream(Pooled):
    """A game in which every sample is met once: ``own`` [M T] lie machine after machine, and ``same`` are T."""

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(features, labels, MACHINES, L2)
        self.own = len(labels) > STEPS

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Drawn:
        """Return the samples of the steps of a round, one each."""
        first = local.before + (client * STEPS if self.own else 0)
        return Drawn(first + np.arange(local.steps_for(1))[:, None])


@cache
def samples(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, d] of norm 1, the last one constant, and labels [n] of all images of the two classes."""
    raw = FashionMNIST().load()
    chosen = (raw.train_y == CLASSES[0]) | (raw.train_y == CLASSES[1])
    pixels = F.avg_pool2d(raw.train_x[chosen].double(), POOLING[d]).flatten(1)
    pixels -= pixels.mean(0)
    features = torch.cat([F.normalize(pixels), torch.ones(len(pixels), 1).double()], 1) / 2 ** 0.5
    return features.numpy(), (raw.train_y[chosen] == CLASSES[1]).double().numpy()


@cache
def task(stream: str, d: int, seed: int) -> Stream:
    """Return the game of a seed; F is the mean of all losses in it, F* that of the best fixed classifier."""
    features, labels = samples(d)
    order = np.random.default_rng(seed).permutation(len(labels))[:STEPS * (MACHINES if stream == "own" else 1)]
    return Stream(features[order], labels[order])


def regret(stream: str, feedback: str, d: int, K: int, eta: float, seed: int) -> float:
    """Return the average regret against the best fixed classifier in hindsight."""
    game = task(stream, d, seed)
    history = trained(FedOSGD(lr=eta, delta=1e-3, feedback=feedback), game, rounds=STEPS // K, steps=K, seed=seed)
    return float("inf") if history is None else history.final("played_loss") - game.floor


def measured(stream: str, feedback: str, d: int, K: int, seeds: int) -> tuple[np.ndarray, Tuned]:
    """Return the regrets with the best step size of a tuning seed, and that step size."""
    best = search(ETAS, lambda eta: regret(stream, feedback, d, K, eta, TUNING))
    return np.array([regret(stream, feedback, d, K, best.value, seed) for seed in range(seeds)]), best


def reproduce(seeds: int) -> Result:
    """Tune the step size of each setting, then compare playing alone with averaging, in the same games."""
    rows, gains, found = [], {}, {}
    for stream in STREAMS:
        for feedback, name in FEEDBACK.items():
            for d in POOLING:
                (alone, eta), (together, other) = (measured(stream, feedback, d, K, seeds) for K in (APART, OFTEN))
                found[stream, feedback, d] = alone, together
                gains[stream, feedback, d] = alone / together
                floor = estimate(task(stream, d, seed).floor for seed in range(seeds))
                steps = ", ".join(f"{t.value:.2g}{' (end of the grid)' if t.edge else ''}" for t in (eta, other))
                rows.append((stream, name, d, floor, estimate(alone), estimate(together), estimate(alone / together),
                             steps))
    columns = ("samples", "feedback", "d", "loss of the best fixed", "regret alone", f"regret together, K={OFTEN}",
               "alone / together", "step sizes")
    criteria = judge(gains, found)
    finding = "" if all(c.holds for c in criteria) else explain(found, seeds)
    return Result(columns, rows, criteria, draw(found), finding)


def explain(found: dict[Any, tuple[np.ndarray, np.ndarray]], seeds: int) -> str:
    """Return what was found out about the criteria that do not hold."""
    saved = [float(np.mean(np.subtract(*found["own", "two_point", d]))) for d in POOLING]
    still = [float(np.log(2) - np.mean([task("own", d, seed).floor for seed in range(seeds)])) for d in POOLING]
    share = [found["own", "two_point", d][0].mean() / cost for d, cost in zip(POOLING, still, strict=True)]
    low, high = POOLING
    return ("That gradients gain nothing is the worst case, where all machines meet the same losses: so it is here "
            "with the same samples. With samples of their own the mean over machines is less noisy, and gradients "
            f"gain, too. With two values averaging takes more off the regret at d={high} ({saved[1]:.3f}) than at "
            f"d={low} ({saved[0]:.3f}), but a smaller share of it: a machine alone has there {share[1]:.0%} of the "
            f"regret of never moving from 0, and {share[0]:.0%} at d={low}. Longer games alone do not change that: in "
            f"a check with 8 machines and 3 seeds, alone / together was 2.0 at d={low} and 1.7 at d={high} after 600 "
            "steps, 2.2 and 1.8 after 1500, with wide intervals.")


def judge(gains: dict[Any, np.ndarray], found: dict[Any, Any]) -> list[Criterion]:
    """Return what the theory leads one to expect, and whether it is so."""

    def at_each(values: dict[int, Estimate]) -> str:
        return "; ".join(f"{value} at d={d}" for d, value in values.items())

    low, high = POOLING
    more = {d: estimate(gains["own", "two_point", d] / gains["own", "first_order", d]) for d in POOLING}
    first = {d: estimate(gains["own", "first_order", d]) for d in POOLING}
    growth = estimate(gains["own", "two_point", high] / gains["own", "two_point", low])
    apart = max(float(np.abs(np.subtract(*found["same", "first_order", d])).max()) for d in POOLING)
    same = estimate(gains["same", "two_point", high])
    return [Criterion("own samples, both d: what two values gain by averaging / what gradients gain above 1",
                      at_each(more), all(value.low > 1 for value in more.values())),
            Criterion("own samples, both d: regret with gradients, alone / together below 1.5", at_each(first),
                      all(value.high < 1.5 for value in first.values())),
            Criterion(f"own samples: what two values gain at d={high} / at d={low} above 1", growth, growth.low > 1),
            Criterion(f"same samples: with two values at d={high} alone / together above 1.5, with gradients no "
                      "difference above 1e-12", f"{same}; {apart:.1e}", same.low > 1.5 and apart < 1e-12)]


def draw(found: dict[Any, tuple[np.ndarray, np.ndarray]]) -> Any:
    """Return what draws the regrets alone and together beside each other."""

    def on(axes: Any) -> None:
        at = np.arange(len(found))
        for k, label in enumerate(("alone", f"together every {OFTEN} steps")):
            axes.bar(at + 0.4 * k - 0.2, [values[k].mean() for values in found.values()], 0.4, label=label)
        axes.set_xticks(at, [f"{stream}\n{FEEDBACK[feedback]}\nd={d}" for stream, feedback, d in found], fontsize=8)
        axes.set(ylabel="average regret")
        axes.legend()

    return on
