"""What every reproduction is made of: a table beside the expected figures, criteria with intervals, a plot.

A reproduction is a module of this folder with ``ABOUT`` and ``reproduce(seeds) -> Result``. All training in it goes
through ``fedlearn.run``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fedlearn
from fedlearn.backends.inprocess import InProcess
from fedlearn.errors import NonFiniteUpdate, UpdateOverflow
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import FullParticipation
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.running.execute import History

SEEDS = 5


@dataclass(frozen=True)
class About:
    """Which result this is: ``id`` as in the table of all, ``claim`` in one sentence, ``paper`` its citation."""

    id: str
    claim: str
    paper: str


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval (Student's t; the ends are equal where nothing varies)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if self.low == self.high else f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Criterion:
    """A condition that the result must meet: in words, what was found, and whether it holds.

    ``found`` is an estimate with its interval, or a text where no seed enters.
    """

    says: str
    found: Estimate | str
    holds: bool


@dataclass(frozen=True)
class Result:
    """``columns`` and ``rows`` of the table (an ``expected`` column among them), criteria, plot and remarks.

    ``draw(axes)`` draws on matplotlib axes. ``finding`` says, where a criterion does not hold, what was found
    out about it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    criteria: Sequence[Criterion]
    draw: Callable[[Any], None]
    finding: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def estimate(values: Iterable[float]) -> Estimate:
    """Return the mean of values over seeds and its 95% interval."""
    from scipy import stats

    v = np.asarray(list(values), dtype=float)
    mean = float(v.mean())
    if len(v) < 2 or np.ptp(v) == 0:
        return Estimate(mean, mean, mean)
    half = float(stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / len(v) ** 0.5)
    return Estimate(mean, mean - half, mean + half)


def train(algorithm: Any, task: Any, *, rounds: int, steps: int, seed: int = 0, batch: int | None = 1,
          metric: str = "suboptimality", every: int = 0, **choices: Any) -> float:
    """Train as ``trained`` does, and return the last value of a metric; what diverges counts as infinity."""
    history = trained(algorithm, task, rounds=rounds, steps=steps, seed=seed, batch=batch, every=every, **choices)
    value = float("inf") if history is None else history.final(f"test_{metric}")
    return value if np.isfinite(value) else float("inf")


def trained(algorithm: Any, task: Any, *, rounds: int, steps: int, seed: int = 0, batch: int | None = 1,
            every: int = 0, **choices: Any) -> History | None:
    """Train with everybody in every round, stacked in one process; None where the run diverged.

    ``choices`` are arguments of ``fedlearn.run``.
    """
    logging.getLogger("fedlearn").setLevel(logging.WARNING)
    options = {"sampling": FullParticipation(), "weighting": UniformWeighting(), "backend": InProcess(),
               "local": LocalWork(steps=steps, batch_size=batch), "stack": True, "progress": "none",
               "evaluate_every": every, **choices}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return fedlearn.run(algorithm=algorithm, task=task, rounds=rounds, seed=seed, **options)
    except (NonFiniteUpdate, UpdateOverflow):
        return None


@dataclass(frozen=True)
class Tuned:
    """The best value of a grid by the mean over the tuning seeds; ``edge``: it lies at an end of the grid."""

    value: float
    score: float
    edge: bool


def tune(grid: Sequence[float], score: Callable[[float], float]) -> Tuned:
    """Return the point of a grid, in its order, with the lowest score."""
    scores = [score(value) for value in grid]
    best = int(np.argmin(scores))
    return Tuned(grid[best], scores[best], best in (0, len(grid) - 1))


def search(grid: Sequence[float], score: Callable[[float], float]) -> Tuned:
    """Return what ``tune`` would, where the score has one valley: every third point, then the best one's neighbours."""
    scores = {i: score(grid[i]) for i in range(1, len(grid), 3)}
    middle = min(scores, key=lambda i: scores[i])
    scores |= {i: score(grid[i]) for i in (middle - 1, middle + 1) if 0 <= i < len(grid)}
    best = min(scores, key=lambda i: scores[i])
    return Tuned(grid[best], scores[best], best in (0, len(grid) - 1))
