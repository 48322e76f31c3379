"""Learning-rate schedules: the factor by which step sizes are multiplied in a round.

The factor lies in (0, 1], depends on nothing but the place in the run, and starts with an optional
linear warm-up. All schedules here are constant within a round unless their docstring says otherwise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..errors import in_range


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor per round: warm-up over ``warmup`` rounds, then the decay of the concrete schedule.

    It multiplies the clients' step sizes, and the server's too where ``server`` is true. ``horizon``
    says whether the factor depends on how many rounds the run is to have.
    """

    horizon: ClassVar[bool] = False

    warmup: int = 0
    server: bool = False

    def __post_init__(self) -> None:
        in_range("schedule.warmup", self.warmup, least=0)

    def factor(self, round: int, rounds: int, k: int = 0) -> float:
        """Return the factor of the clients' step sizes at step ``k`` of ``round``, both from 0."""
        if round < self.warmup:
            return (round + 1) / (self.warmup + 1)
        return self._decay(round - self.warmup, max(1, rounds - self.warmup), k)

    def server_factor(self, round: int, rounds: int) -> float:
        """Return the factor of the server's step size: that of the clients, or 1."""
        return self.factor(round, rounds) if self.server else 1.0

    @abstractmethod
    def _decay(self, t: int, horizon: int, k: int) -> float:
        """Return the factor ``t`` rounds after the warm-up, of ``horizon`` such rounds."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The step size stays as it is."""

    def _decay(self, t: int, horizon: int, k: int) -> float:
        return 1.0


@dataclass(frozen=True)
class InverseTime(Schedule):
    """1 / (1 + t / half): halved after ``half`` rounds, then as 1/t, as in Li et al. (ICLR 2020).

    t counts rounds; with ``local_steps`` it goes on within a round, by 1 / ``local_steps`` a step.
    """

    half: float = 10.0
    local_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("schedule.half", self.half, above=0)
        if self.local_steps is not None:
            in_range("schedule.local_steps", self.local_steps, least=1)

    def _decay(self, t: int, horizon: int, k: int) -> float:
        within = k / self.local_steps if self.local_steps else 0.0
        return 1 / (1 + (t + within) / self.half)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 towards ``final``, which would be reached one round after the last.

    Loshchilov and Hutter, "SGDR" (ICLR 2017), without restarts.
    """

    horizon: ClassVar[bool] = True

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("schedule.final", self.final, least=0, most=1)

    def _decay(self, t: int, horizon: int, k: int) -> float:
        angle = math.pi * min(t, horizon - 1) / horizon
        return self.final + (1 - self.final) * (1 + math.cos(angle)) / 2
