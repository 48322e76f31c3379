"""Training to a target without a network: by fedlearn in one process, and by plain averaged gradients.

What is trained does not depend on the network: the same steps reach the target on a slow one, only later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import fedlearn
from benchmarks.network.plan import DDP, HOSTS, Problem
from fedlearn.backends.inprocess import InProcess
from fedlearn.config.assemble import parts, task_of
from fedlearn.config.compose import compose
from fedlearn.errors import NonFiniteUpdate, UpdateOverflow
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import FullParticipation
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.seeds import generator
from fedlearn.vectors import load


class Reached(Exception):
    """A run that need not go on: it is at the target after so many rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds


class Target:
    """A tracker that ends a run at the first loss that is low enough."""

    def __init__(self, loss: float) -> None:
        self.loss = loss

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Nothing is to be done yet."""

    def round(self, line: Mapping[str, Any]) -> None:
        """Look at the loss, where there is one."""
        if line.get("test_loss", math.inf) <= self.loss:
            raise Reached(line["round"])

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Nothing more is to be done."""


def task_for(problem: Problem) -> Any:
    """Return the task of a problem, which every process makes for itself.

    Raises:
        fedlearn.errors.DataError: if the data set is not on this machine.
    """
    return task_of(parts(compose(problem.overrides)))


def options(problem: Problem, method: Mapping[str, Any], task: Any, rounds: int, every: int) -> dict[str, Any]:
    """Return the arguments of ``fedlearn.run`` for a method: all hosts in every round, each counting the same."""
    made = parts(compose([*problem.overrides, f"algorithm={method['algorithm']}", f"algorithm.lr={method['lr']}"]))
    return {"algorithm": made.algorithm, "task": task, "rounds": rounds, "seed": problem.seed,
            "local": LocalWork(steps=method["steps"], batch_size=problem.batch), "sampling": FullParticipation(),
            "weighting": UniformWeighting(), "reduce": method["reduce"], "stack": False, "evaluate_every": every,
            "checkpoint_every": 0, "progress": "none"}


def rounds_to(problem: Problem, method: Mapping[str, Any], task: Any, most: int) -> int | None:
    """Return the rounds in which a method reaches the target; None if it takes more than ``most``, or diverges."""
    if method["algorithm"] == DDP:
        return averaged(problem, task, method["lr"], most)
    given = options(problem, method, task, most, looks(problem, method["steps"]))
    try:
        with suppress(NonFiniteUpdate, UpdateOverflow):
            fedlearn.run(**given, backend=InProcess(), trackers=[Target(problem.target)])
    except Reached as reached:
        return reached.rounds
    return None


def looks(problem: Problem, steps: int) -> int:
    """Return the rounds between two looks at the loss."""
    return max(1, problem.look // steps)


def averaged(problem: Problem, task: Any, lr: float, most: int) -> int | None:
    """Return the steps in which SGD on the mean of all hosts' gradients, as DDP takes it, reaches the target."""
    model = model_of(task, problem)
    weights, optimizer = list(model.parameters()), torch.optim.SGD(model.parameters(), lr=lr)
    for done, batches in enumerate(zip(*(samples(problem, task, host, most) for host in range(HOSTS)), strict=True), 1):
        optimizer.zero_grad()
        for x, y in batches:
            (task.criterion(model(task.prepare(x)), y) / HOSTS).backward()
        optimizer.step()
        if done % problem.look == 0:
            loss = loss_of(task, weights)
            if loss <= problem.target or not math.isfinite(loss):
                return done if loss <= problem.target else None
    return None


def model_of(task: Any, problem: Problem) -> nn.Module:
    """Return a module like the task's at its initial weights, which nobody else has."""
    model = deepcopy(task.model)
    load(model, task.initial(problem.seed))
    return model


def loss_of(task: Any, weights: Sequence[Tensor]) -> float:
    """Return the test loss at some weights."""
    return task.evaluate(torch.cat([w.detach().reshape(-1) for w in weights]))["loss"]


def samples(problem: Problem, task: Any, host: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a host's mini-batches: those that Local SGD with K=1 takes."""
    one = LocalWork(steps=1, batch_size=problem.batch)
    for step in range(steps):
        (index,) = task.draws(host, generator(problem.seed, "local", step, host), one)
        yield task.store.batch(host, index)


def search(problem: Problem, method: Mapping[str, Any], task: Any) -> dict[str, Any]:
    """Return the step size with which a method reaches the target in the fewest rounds, those, and what was tried.

    From the given one on it is doubled, and then halved, as long as that is better. Nobody is watched for longer than
    the best took.
    """
    began = perf_counter()
    tried: dict[float, int | None] = {}
    most = problem.most // method["steps"]

    def rounds(lr: float) -> float:
        if lr not in tried:
            best = min((n for n in tried.values() if n is not None), default=most)
            tried[lr] = rounds_to(problem, {**method, "lr": lr}, task, best)
        return tried[lr] or math.inf

    best = method["lr"]
    rounds(best)
    for factor in (2.0, 0.5):
        while rounds(best * factor) < rounds(best):
            best *= factor
    return {"lr": best, "rounds": tried[best], "tried": sorted(tried.items()), "seconds": perf_counter() - began}
