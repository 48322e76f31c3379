"""R10c: FedExP's own over-parameterised regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedexp import FedExP
from fedlearn.seeds import generator
from fedlearn.tasks.supervised import SupervisedTask

from .paper import About, Criterion, Result, estimate, trained

ABOUT = About("R10c", "Where all clients can be fitted at once, FedExP is faster than FedAvg by orders of magnitude.",
              "Jhunjhunwala et al., FedExP, ICLR 2023, Section 6 (synthetic linear regression)")
CLIENTS, SAMPLES, SIZE, K, ETA, ROUNDS = 20, 30, 1000, 20, 0.1, 200
# Their code for this experiment has no eps.
METHODS = {"FedAvg": FedAvg(lr=ETA), "FedAvg, eta_g = 3": FedAvg(lr=ETA, server_lr=3.0),
           "FedExP": FedExP(lr=ETA, eps=1e-40)}
EXPECTED = {"FedAvg": (0.135, 0.020), "FedAvg, eta_g = 3": (0.032, 0.0015), "FedExP": (1.9e-5, 1.8e-14)}


def instance(seed: int) -> SupervisedTask:
    """Return the regression of the authors' notebook: rows of norm 1, labels of norm 1 for each client.

    A client's rows are N(v, I), v ~ N(B, I) with B ~ N(0, 0.1^2), and its own weights N(u, I), u ~ N(0, 0.1^2).
    F_m is half the sum of squares, for which features and labels are multiplied by the root of the samples. Of
    the 1000 dimensions no method leaves the span of the 600 rows: the features are coordinates in that.
    """
    rng = generator(seed, "problem")
    rows, labels = [], []
    for _ in range(CLIENTS):
        u, b = 0.1 * rng.standard_normal(2)
        x = b + rng.standard_normal(SIZE) + rng.standard_normal((SAMPLES, SIZE))
        y = x @ (u + rng.standard_normal(SIZE))
        rows.append(x / np.linalg.norm(x, axis=1, keepdims=True))
        labels.append(torch.from_numpy(SAMPLES**0.5 * y / np.linalg.norm(y)))
    span = np.linalg.qr(np.concatenate(rows).T)[0]
    clients = [(torch.from_numpy(SAMPLES**0.5 * x @ span), y) for x, y in zip(rows, labels, strict=True)]
    model = nn.Linear(span.shape[1], 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    test = torch.cat([x for x, _ in clients]), torch.cat([y for _, y in clients])
    return SupervisedTask(model, "squared", clients, test, torch.float64)


def reproduce(seeds: int) -> Result:
    """Train each method and read the loss, as they have it (twice the mean of F_m), after 50 rounds.

    The first seed goes on to 200.
    """
    loss: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    steps: list[float] = []
    for seed in range(seeds):
        task = instance(seed)
        for name, algorithm in METHODS.items():
            history = trained(algorithm, task, rounds=50 if seed else ROUNDS, steps=K, batch=None, every=10)
            assert history is not None
            loss[name].append([2 * line["test_loss"] for line in history.metrics if "test_loss" in line])
            steps += [line["server_step"] for line in history.metrics if "server_step" in line]
    rows: list[tuple[Any, ...]] = []
    for name, of in loss.items():
        rows += [(name, "50", EXPECTED[name][0], str(estimate(path[4] for path in of))),
                 (name, "200, first seed", EXPECTED[name][1], f"{of[0][-1]:.3g}")]
    rows.append(("FedExP's eta_g", "all", "5 to 170", f"{min(steps):.3g} to {max(steps):.3g}"))
    ratio = estimate(a[4] / b[4] for a, b in zip(loss["FedExP"], loss["FedAvg"], strict=True))
    criteria = [Criterion("FedExP's loss after 50 rounds below 0.01 of FedAvg's", ratio, ratio.high < 0.01)]

    def draw(axes: Any) -> None:
        for name, of in loss.items():
            axes.semilogy(np.arange(1, len(of[0]) + 1) * 10, of[0], label=name)
        axes.set(xlabel="rounds (first seed)", ylabel="loss")
        axes.legend()

    return Result(("method", "rounds", "expected loss", "loss"), rows, criteria, draw)
