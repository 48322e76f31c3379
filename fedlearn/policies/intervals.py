"""Communication intervals: how many local steps lie between two rounds of communication.

``local.steps`` is the number K that these rules start from; all clients take the same number of steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError, in_range


class Intervals(ABC):
    """A rule for the number of local steps of each round; ``horizon``: it depends on how many rounds there are."""

    horizon: ClassVar[bool] = False

    @abstractmethod
    def steps(self, round: int, rounds: int, steps: int) -> int:
        """Return the local steps of ``round`` (from 0) of ``rounds``, where ``local.steps`` is ``steps``."""

    def check(self, rounds: int, steps: int) -> None:
        """Refuse a rule that does not fit so many rounds and steps.

        Raises:
            ConfigError: naming the key.
        """
        return None


@dataclass(frozen=True)
class ConstantIntervals(Intervals):
    """The same number of local steps in every round."""

    def steps(self, round: int, rounds: int, steps: int) -> int:
        return steps


@dataclass(frozen=True)
class GrowingIntervals(Intervals):
    """Intervals that grow linearly: synchronisation r (from 1) after floor(a r (r + 1) / 2) local steps.

    A. Spiridonoff, A. Olshevsky, I. Ch. Paschalidis, "Communication-efficient SGD: From Local SGD to One-Shot
    Averaging", NeurIPS 2021: H_i = a (i + 1) with a = 2 T / (R (R + 1)), so that the last of R synchronisations
    falls on T. Here T = R times ``local.steps``: the budget of constant intervals. Where a is below 1, several
    synchronisations would fall on one step: that is refused.
    """

    horizon: ClassVar[bool] = True

    def check(self, rounds: int, steps: int) -> None:
        if 2 * steps < rounds + 1:
            raise ConfigError("intervals", "growing", f"at most {2 * steps - 1} rounds with local.steps={steps}",
                              f"Found rounds={rounds}: the first interval would have no step; raise local.steps to "
                              f"{-(-(rounds + 1) // 2)}.")

    def steps(self, round: int, rounds: int, steps: int) -> int:
        return _place(round + 1, rounds, steps) - _place(round, rounds, steps)


def _place(r: int, rounds: int, steps: int) -> int:
    """Return after how many local steps the r-th synchronisation is: floor(T r (r + 1) / (R (R + 1)))."""
    return steps * r * (r + 1) // (rounds + 1)


@dataclass(frozen=True)
class PostLocal(Intervals):
    """One local step in each of the first ``switch`` rounds, then ``local.steps``: post-local SGD.

    T. Lin, S. U. Stich, K. K. Patel, M. Jaggi, "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020. Never
    switched it is minibatch SGD, switched at 0 Local SGD.
    """

    switch: int = 10

    def __post_init__(self) -> None:
        in_range("intervals.switch", self.switch, least=0)

    def steps(self, round: int, rounds: int, steps: int) -> int:
        return 1 if round < self.switch else steps


@dataclass(frozen=True)
class GivenIntervals(Intervals):
    """A list of local steps, one entry for each round."""

    horizon: ClassVar[bool] = True

    each: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for count in self.each:
            in_range("intervals.each", count, least=1)

    def check(self, rounds: int, steps: int) -> None:
        if len(self.each) != rounds or sum(self.each) > rounds * steps:
            raise ConfigError("intervals.each", list(self.each), f"{rounds} numbers, one for each round, of at most "
                              f"{rounds * steps} steps in all", f"The budget is rounds times local.steps={steps}.")

    def steps(self, round: int, rounds: int, steps: int) -> int:
        return self.each[round]
