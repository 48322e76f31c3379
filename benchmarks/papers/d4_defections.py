"""D4: two agents with two classes of Fashion-MNIST, who leave once content: ADA-GD against FedAvg."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlearn.algorithms.ada_gd import AdaGD
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.contracts import Vec
from fedlearn.modifiers.defection import Defection
from fedlearn.tasks.fashion_mnist import FashionMNIST
from fedlearn.tasks.supervised import SupervisedTask

from .paper import About, Criterion, Result, estimate, trained

ABOUT = About("D4", "On two classes of Fashion-MNIST the first agent to be content leaves FedAvg, which ends worse for "
              "it; from ADA-GD nobody leaves, and both end content.",
              "After the experiment of Han, Patel, Shao, Wang: On the Effect of Defections in Federated Learning, 2023")
CLASSES = (0, 6)    # T-shirts and shirts, which look alike
SHARES = (0.9, 0.5)     # of T-shirts among the samples of the first and the second agent
SAMPLES, ROUNDS, OFTEN = 150, 400, 20
EPS, ETA = 0.2, 0.01


class Agents(SupervisedTask):
    """Softmax regression from 0; the evaluation adds the largest loss of the agents on their own samples."""

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return test loss and accuracy, and ``worst``, the largest of the agents' own losses."""
        oracle, losses = self.oracle(), []
        for m in range(len(self.sizes)):
            oracle.enter([m])
            losses.append(float(oracle.full_value(x)))
        return super().evaluate(x) | {"worst": max(losses)}


def task_of(seed: int) -> Agents:
    """Return the two agents with a draw of samples."""
    raw, rng = FashionMNIST().load(), np.random.default_rng(seed)

    def two(x: Tensor, y: Tensor, counts: tuple[int, int]) -> tuple[Tensor, Tensor]:
        rows = [rng.permutation(np.flatnonzero(y.numpy() == c))[:n] for c, n in zip(CLASSES, counts, strict=True)]
        index = torch.from_numpy(np.concatenate(rows))
        return x[index].float(), (y[index] == CLASSES[1]).long()

    parts = [two(raw.train_x, raw.train_y, (round(SAMPLES * s), SAMPLES - round(SAMPLES * s))) for s in SHARES]
    test = two(raw.test_x, raw.test_y, (1000, 1000))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(raw.train_x[0].numel(), 2))
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    return Agents(model, "cross_entropy", parts, test)


def reproduce(seeds: int) -> Result:
    """Run both from the same start on the same samples."""
    methods = {"FedAvg": FedAvg(lr=ETA), "ADA-GD": AdaGD(lr=ETA, eps=EPS)}
    curves: dict[str, list[list[float]]] = {name: [] for name in methods}
    ends: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for seed in range(seeds):
        for name, algorithm in methods.items():
            history = trained(algorithm, task_of(seed), rounds=ROUNDS, steps=1, batch=None, every=OFTEN, seed=seed,
                              modifiers={"defection": Defection(EPS)}, stack=False)
            assert history is not None
            curves[name].append([line["test_worst"] for line in history.metrics if "test_worst" in line])
            ends[name].append((history.final("left"), curves[name][-1][-1], history.final("test_accuracy")))
    each = {name: np.array(values) for name, values in ends.items()}
    rows = [(name, estimate(v[:, 0]), estimate(v[:, 1]), estimate(v[:, 2])) for name, v in each.items()]
    worst = estimate(each["ADA-GD"][:, 1])
    gap = estimate(each["FedAvg"][:, 1] / each["ADA-GD"][:, 1])
    criteria = [Criterion("FedAvg: agents that left > 0 in every run", estimate(each["FedAvg"][:, 0]),
                          bool((each["FedAvg"][:, 0] > 0).all())),
                Criterion("ADA-GD: nobody leaves", estimate(each["ADA-GD"][:, 0]), not each["ADA-GD"][:, 0].any()),
                Criterion(f"ADA-GD: both agents' losses end below 2 eps = {2 * EPS:g}", worst,
                          bool(each["ADA-GD"][:, 1].max() <= 2 * EPS)),
                Criterion("FedAvg's worst loss / ADA-GD's above 1", gap, gap.low > 1)]

    def draw(axes: Any) -> None:
        rounds = np.arange(len(curves["FedAvg"][0])) * OFTEN
        for name in methods:
            axes.plot(rounds, np.mean(curves[name], axis=0), label=name)
        axes.axhline(EPS, color="grey", linestyle=":", label="eps")
        axes.set(xlabel="rounds", ylabel="largest loss of an agent")
        axes.legend()

    return Result(("method", "agents that left", "worst loss of an agent", "test accuracy"), rows, criteria, draw)
