"""Who of a cohort takes part: over-selection, deadlines, and how many replies a round needs.

K. Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019: more clients are asked than are
needed, the first to reply are taken, and a round that too few reply to is abandoned.

Who is first is told by the virtual clock, which knows beforehand how long everybody takes: the same clients are late
wherever the run's work is done, and they need not work at all. ``wall`` is another thing, seconds of a real clock:
what is accepted then depends on how quick the machines were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import in_range


class Taken(NamedTuple):
    """The clients whose replies are taken and those that are late, each in the order that was given; the seconds."""

    taken: list[int]
    late: list[int]
    seconds: float


@dataclass(frozen=True)
class Participation:
    """How many more clients are asked than are needed, and how long is waited for whom.

    ``over`` times as many clients are asked as a cohort has, of which the first to reply are taken. Replies that come
    later than ``deadline`` simulated seconds after the round began are late (None: none is), and so are those that a
    worker has not finished ``wall`` real seconds after it got the work. A round with fewer than ``least`` good replies
    is void: it changes nothing.

    Raises:
        ConfigError: if a field is out of range.
    """

    over: float = 1.0
    deadline: float | None = None
    wall: float | None = None
    least: int = 1

    def __post_init__(self) -> None:
        in_range("participation.over", self.over, least=1, below=math.inf)
        for name in ("deadline", "wall"):
            if getattr(self, name) is not None:
                in_range(f"participation.{name}", getattr(self, name), above=0, below=math.inf)
        in_range("participation.least", self.least, least=1, whole=True)

    @property
    def by_clock(self) -> bool:
        """Whether the virtual clock decides who is late."""
        return self.over > 1 or self.deadline is not None

    def asked(self, cohort: int) -> int:
        """Return how many clients are asked for a cohort of so many."""
        return math.ceil(round(self.over * cohort, 9))   # 1.1 * 10 is a little more than 11

    def take(self, durations: Mapping[int, float], most: int, spent: float = 0.0) -> Taken:
        """Return who is taken, at most so many, given by client the seconds that each one's reply takes.

        Among equals the smaller id is first. ``spent`` seconds of the round are over already. The seconds returned are
        those until the last reply that was waited for, or until the deadline, where one was waited for in vain.
        """
        left = math.inf if self.deadline is None else self.deadline - spent
        in_time = sorted((seconds, m) for m, seconds in durations.items() if seconds <= left)[:most]
        taken = {m for _, m in in_time}
        vain = len(taken) < min(most, len(durations))
        seconds = max(left, 0.0) if vain else max((seconds for seconds, _ in in_time), default=0.0)
        return Taken([m for m in durations if m in taken], [m for m in durations if m not in taken], seconds)
