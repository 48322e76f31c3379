"""Learning-rate schedules: the factor by which step sizes are multiplied in a round.

The factor lies in (0, 1], depends on nothing but the place in the run, and starts with an optional
linear warm-up. All schedules here are constant within a round unless their docstring says otherwise.

Averaging of averages (A. Godichon-Baggioni, S. Saadane, "On the rates of convergence of Parallelized Averaged
Stochastic Gradient Algorithms", Statistics 2020) needs no algorithm of its own: it is FedAvg for one round of one
epoch of single samples, with ``schedule=power schedule.by_step=true``, ``modifiers=[averaging]`` (over steps) and
``weighting=ratio``, which weights the clients' averages by the lengths of their streams.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError, in_range


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor per round: warm-up over ``warmup`` rounds, then the decay of the concrete schedule.

    It multiplies the clients' step sizes, and the server's too where ``server`` is true. ``horizon``
    says whether the factor depends on how many rounds the run is to have. A schedule with a true ``by_step``
    counts local steps from the start of the run, of which all clients then take the same number.
    """

    horizon: ClassVar[bool] = False

    warmup: int = 0
    server: bool = False

    def __post_init__(self) -> None:
        in_range("schedule.warmup", self.warmup, least=0)

    def factor(self, round: int, rounds: int, k: int = 0, t: int = 0) -> float:
        """Return the factor of the clients' step sizes at step ``k`` of ``round``, both from 0.

        ``t`` counts the local steps from the start of the run, where all clients take the same number of them.
        """
        if round < self.warmup:
            return (round + 1) / (self.warmup + 1)
        if getattr(self, "by_step", False):
            return self._decay(t, max(1, rounds), k)
        return self._decay(round - self.warmup, max(1, rounds - self.warmup), k)

    def server_factor(self, round: int, rounds: int, t: int = 0) -> float:
        """Return the factor of the server's step size: that of the clients' first step of the round, or 1."""
        return self.factor(round, rounds, 0, t) if self.server else 1.0

    def _refuse_warmup(self) -> None:
        """Refuse a warm-up, which counts rounds, of a schedule that counts local steps.

        Raises:
            ConfigError: if there is one.
        """
        if self.warmup:
            raise ConfigError("schedule.warmup", self.warmup, "0 with a schedule by local steps",
                              "A warm-up counts rounds; choose a schedule by rounds.")

    @abstractmethod
    def _decay(self, t: int, horizon: int, k: int) -> float:
        """Return the factor at time t at step k of a round.

        t counts rounds after the warm-up, of ``horizon`` such rounds, or with ``by_step`` local steps.
        """


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


@dataclass(frozen=True)
class Linear(Schedule):
    """From 1 down to 0, which would be reached one round after the last.

    The worst-case optimal decay of SGD's last iterate: A. Defazio, A. Cutkosky, H. Mehta, K. Mishchenko, "Optimal
    Linear Decay Learning Rate Schedules and Further Refinements", 2023. With ``local_steps`` it goes on within a
    round, by 1 / ``local_steps`` of a round a step, and 0 would be reached one step after the last.
    """

    horizon: ClassVar[bool] = True

    local_steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_steps is not None:
            in_range("schedule.local_steps", self.local_steps, least=1)

    def _decay(self, t: int, horizon: int, k: int) -> float:
        steps = self.local_steps or 1
        within = min(k, steps - 1) if self.local_steps else 0
        return 1 - (min(t, horizon - 1) * steps + within) / (horizon * steps)


@dataclass(frozen=True)
class Power(Schedule):
    """(1 + t)^-alpha, t counting rounds or, ``by_step``, local steps over all rounds.

    The large steps c t^-alpha, alpha between 1/2 and 1, that Polyak-Ruppert averaging (modifiers=[averaging]) is
    meant for: A. Dieuleveut, K. K. Patel, "Communication trade-offs for Local-SGD with large step size", NeurIPS 2019.
    """

    alpha: float = 0.66
    by_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("schedule.alpha", self.alpha, above=0, most=1)
        if self.by_step:
            self._refuse_warmup()

    def _decay(self, t: int, horizon: int, k: int) -> float:
        return (1 + t) ** -self.alpha


@dataclass(frozen=True)
class InverseSteps(Schedule):
    """min(a / (t + b), 1), t counting local steps over all rounds.

    The step sizes of A. Spiridonoff, A. Olshevsky, I. Ch. Paschalidis, "Communication-efficient SGD: From Local SGD
    to One-Shot Averaging", NeurIPS 2021: with lr = 1 / H, a = 2 H / mu and b = 1 they are min(2 / (mu (t + 1)), 1 / H).
    """

    by_step: ClassVar[bool] = True

    a: float = 100.0
    b: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("schedule.a", self.a, above=0)
        in_range("schedule.b", self.b, above=0)
        self._refuse_warmup()

    def _decay(self, t: int, horizon: int, k: int) -> float:
        return min(self.a / (t + self.b), 1.0)
