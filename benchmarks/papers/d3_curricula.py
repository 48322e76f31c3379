"""D3: curricula of examples on digits, with and without wrong labels, for clients that are alike or differ much."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

import fedlearn
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.data.partitions.dirichlet import Dirichlet
from fedlearn.data.raw import RawData
from fedlearn.modifiers.example_curriculum import ExampleCurriculum
from fedlearn.policies.local_work import LocalWork
from fedlearn.seeds import generator
from fedlearn.tasks.digits import Digits
from fedlearn.tasks.supervised import SupervisedTask

from .paper import About, Criterion, Estimate, Result, estimate

ABOUT = About("D3", "Where labels are wrong and clients differ, easy samples first helps and hard ones first hurts.",
              "Vahidian et al.: When Do Curricula Work in Federated Learning?, ICCV 2023")
ORDERS = ("none", "rand", "curr", "anti")
CELLS = ((0.05, 0.0), (0.05, 0.2), (100.0, 0.0), (100.0, 0.2))     # Dirichlet, share of wrong labels
EXPECTED = {(0.05, 0.0): (.829, .805, .825, .820), (0.05, 0.2): (.751, .767, .813, .666),
            (100.0, 0.0): (.955, .954, .928, .967), (100.0, 0.2): (.940, .946, .934, .939)}
CLIENTS, COHORT, ROUNDS, EPOCHS, BATCH, LR, HIDDEN = 20, 5, 40, 5, 10, 0.1, 32


@cache
def digits() -> RawData:
    return Digits().load()


def problem(alpha: float, wrong: float, seed: int) -> SupervisedTask:
    """Return digits split over the clients, a share of the training labels replaced by random other ones."""
    raw, rng = digits(), generator(seed, "partition")
    store = Dirichlet(alpha).split(raw, CLIENTS, rng, least=10)
    hit = np.flatnonzero(rng.random(len(store.labels)) < wrong)
    labels = store.labels.clone()
    labels[hit] = (labels[hit] + torch.from_numpy(rng.integers(1, 10, len(hit)))) % 10
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(),
                                torch.nn.Linear(HIDDEN, 10))
    return SupervisedTask(model, "cross_entropy", type(store)(store.features, labels, store.offsets),
                          (raw.test_x, raw.test_y))


def accuracy(alpha: float, wrong: float, order: str, seed: int) -> float:
    history = fedlearn.run(algorithm=FedAvg(lr=LR), task=problem(alpha, wrong, seed), rounds=ROUNDS, cohort=COHORT,
                           seed=seed, local=LocalWork(epochs=EPOCHS, batch_size=BATCH), progress="none",
                           evaluate_every=0, modifiers={"order": ExampleCurriculum(order)})
    return history.final("test_accuracy")


def reproduce(seeds: int) -> Result:
    """Compare the four orders at four levels of difficulty; the seeds pair them."""
    found = {cell: np.array([[accuracy(*cell, order, seed) for order in ORDERS] for seed in range(seeds)])
             for cell in CELLS}
    rows = [(f"Dirichlet {alpha:g}, {wrong:.0%} wrong", order, EXPECTED[alpha, wrong][i],
             estimate(found[alpha, wrong][:, i])) for alpha, wrong in CELLS for i, order in enumerate(ORDERS)]

    def gap(cell: tuple[float, float], better: str, worse: str) -> np.ndarray:
        return found[cell][:, ORDERS.index(better)] - found[cell][:, ORDERS.index(worse)]

    few, iid = (0.05, 0.2), (100.0, 0.2)

    def above(says: str, values: np.ndarray) -> Criterion:
        e: Estimate = estimate(values)
        return Criterion(says, e, e.mean > 0)

    criteria = [above("few classes and wrong labels: easy first above the random order (expected 0.05)",
                      gap(few, "curr", "rand")),
                above("few classes and wrong labels: the random order above hard first (expected 0.10)",
                      gap(few, "rand", "anti")),
                above("the gain of easy first over the random order is larger than for near-IID clients (0.06)",
                      gap(few, "curr", "rand") - gap(iid, "curr", "rand"))]

    def draw(axes: Any) -> None:
        for i, order in enumerate(ORDERS):
            place = np.arange(len(CELLS)) + 0.2 * (i - 1.5)
            axes.bar(place, [found[cell][:, i].mean() for cell in CELLS], 0.18, label=order,
                     yerr=[found[cell][:, i].std() for cell in CELLS])
        axes.set_xticks(range(len(CELLS)), [f"Dirichlet {alpha:g}\n{wrong:.0%} wrong" for alpha, wrong in CELLS])
        axes.set(ylabel="test accuracy", ylim=(0.5, 1))
        axes.legend()

    return Result(("clients", "order", "expected", "found"), rows, criteria, draw)
