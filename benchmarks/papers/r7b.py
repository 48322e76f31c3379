"""R7b: an honest control: on ordinary logistic regression FedSN-Lite is about as good as Local SGD."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedsn_lite import FedSNLite

from .paper import About, Criterion, Estimate, Result, estimate, search, train
from .pooled import Pooled

ABOUT = About("R7b", "On ordinary logistic regression FedSN-Lite and Local SGD are close: nothing is gained unless the "
              "bias of local steps is what limits.", "Control for Bullins et al., NeurIPS 2021")
MACHINES, SAMPLES, FEATURES, ROUNDS = 64, 20_000, 20, 4
EXPECTED = {800: (3.2e-4, 4.3e-4), 50: (3.1e-3, 1.7e-3)}    # FedSN-Lite, Local SGD
METHODS = {"FedSN-Lite": FedSNLite, "Local SGD": FedAvg}
ETAS = [float(eta) for eta in np.geomspace(0.005, 1.0, 12)]


@cache
def problem() -> Pooled:
    """Return normal features, and labels of the logistic model with a unit vector."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((SAMPLES, FEATURES))
    w = rng.standard_normal(FEATURES)
    labels = rng.random(SAMPLES) < 1 / (1 + np.exp(-features @ (w / np.linalg.norm(w))))
    return Pooled(features, labels.astype(float), MACHINES)


def error(method: str, K: int, eta: float, seed: int) -> float:
    """Return the suboptimality after 4 rounds."""
    return train(METHODS[method](lr=eta), problem(), rounds=ROUNDS, steps=K, seed=seed)


def reproduce(seeds: int) -> Result:
    """Tune eta for each method and K, then compare."""
    rows, criteria, found = [], [], {}
    for K, expected in EXPECTED.items():
        for name, value in zip(METHODS, expected, strict=True):
            def score(eta: float, name: str = name, K: int = K) -> float:
                return error(name, K, eta, 1000)

            best = search(ETAS, score)
            found[name, K] = np.array([error(name, K, best.value, seed) for seed in range(seeds)])
            rows.append((f"{name}, K={K}, R={ROUNDS}", value, estimate(found[name, K])))
        logs = estimate(np.log(found["FedSN-Lite", K] / found["Local SGD", K]))
        ratio = Estimate(*(float(np.exp(v)) for v in (logs.mean, logs.low, logs.high)))
        rows.append((f"FedSN-Lite / Local SGD, K={K}", expected[0] / expected[1], ratio))
        criteria.append(Criterion(f"within a factor of 3 of one another, K={K}", ratio, 1 / 3 < ratio.mean < 3))

    def draw(axes: Any) -> None:
        for name in METHODS:
            axes.loglog(list(EXPECTED), [found[name, K].mean() for K in EXPECTED], "o-", label=name)
        axes.set(xlabel="local steps K", ylabel=f"suboptimality after {ROUNDS} rounds")
        axes.legend()

    return Result(("quantity", "expected", "found"), rows, criteria, draw)
