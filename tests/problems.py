"""Small problems and a bare driver shared by the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedlearn.backends.inprocess import InProcess
from fedlearn.experiment import Experiment, Loop, RoundReport
from fedlearn.policies.sampling import UniformSampling
from fedlearn.policies.weighting import RatioWeighting, UniformWeighting
from fedlearn.protocols.synchronous import Synchronous
from fedlearn.running.execute import setup_of
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.work import Event, Workers

SIZES = (7, 23, 12, 40, 5, 18)


def blobs(sizes: tuple[int, ...] = SIZES, features: int = 6, classes: int = 3, seed: int = 0,
          dtype: torch.dtype = torch.float32) -> SupervisedTask:
    """A linear classifier on Gaussian blobs, with clients of unequal size and different classes."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((classes, features))

    def sample(n: int, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = rng.choice(classes, n, p=share)
        return centres[y] + rng.standard_normal((n, features)), y

    clients = [sample(n, rng.dirichlet(np.ones(classes))) for n in sizes]
    test = sample(60, np.full(classes, 1 / classes))
    torch.manual_seed(seed)
    return SupervisedTask(nn.Sequential(nn.Linear(features, 4), nn.Tanh(), nn.Linear(4, classes)), "cross_entropy",
                          clients, test, dtype)


def experiment(algorithm: Any, rounds: int = 4, **choices: Any) -> Experiment:
    """An experiment on ``blobs``, with everything else at its usual choice."""
    protocol = choices.setdefault("protocol", Synchronous())
    choices.setdefault("task", blobs())
    choices.setdefault("weighting", RatioWeighting() if isinstance(protocol, Synchronous) else UniformWeighting())
    choices.setdefault("sampling", UniformSampling())
    choices.setdefault("backend", InProcess())
    return Experiment(algorithm=algorithm, rounds=rounds, **choices)


def losses(events: Sequence[Event]) -> list[Event]:
    """Return what tells of lost workers among events; on a busy machine ranks' speeds are noted between them."""
    return [event for event in events if event["event"] != "speeds"]


def begin(e: Experiment, **more: Any) -> tuple[Loop, Workers]:
    """Open the workers and return the loop before its first round."""
    workers = e.backend.open(replace(setup_of(e), **more))
    return e.protocol.start(e, workers), workers


def play(e: Experiment, first: int = 0, last: int | None = None) -> tuple[torch.Tensor, list[RoundReport]]:
    """Run an experiment's rounds in memory; return the final model [P] and the reports."""
    loop, workers = begin(e)
    reports = [loop.round(r) for r in range(first, e.rounds if last is None else last)]
    x = loop.model().clone()
    workers.close()
    return x, reports
