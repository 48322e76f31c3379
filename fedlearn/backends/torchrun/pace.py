"""How fast each rank works, as its shares of the last rounds showed, so that work is shared out in proportion.

Ranks count as equally fast until the contrary is plain: one is faster than another if in the last rounds, but for one
in seven, it always was, by a quarter at least, or twice as fast where there are few rounds to go by. So noise changes
nothing, machines of one kind stay exactly equal, and what is adopted stays until it is plainly wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from math import log10, sqrt
from statistics import median
from typing import Any

from ...errors import ConfigError, in_range, one_of

KEY = "backend.speeds"
WORDS = ("auto", "equal")
KEPT = 14      # measured rounds by which a rank is judged
FEW, MANY = 3, 6             # measured rounds from which it is judged at all, and from which they are many
OUT = 7        # one in so many is an outlier
CLEAR, PLAIN = 2.0, 1.25     # times that a rank must have been faster than another in few rounds, and in many
WORTH = 0.02   # seconds that the longest share of a round usually takes where it is worth while
IDLE = 50      # rounds without a client after which a rank is taken to be twice as fast as thought


def check_speeds(speeds: Any, dedicated: bool) -> None:
    """Check which speeds are asked for: a word, or a list with a number for each rank.

    Raises:
        ConfigError: naming backend.speeds.
    """
    if isinstance(speeds, str) or not isinstance(speeds, list | tuple):
        if speeds not in WORDS:
            raise ConfigError(KEY, speeds, f"{one_of(WORDS, str(speeds))}, or a list with one number per rank",
                              "As in [1,1,0.25].")
        return
    for rank, speed in enumerate(speeds):
        if dedicated and rank == 0:
            if speed != 0:
                raise ConfigError(KEY, speed, "0 for rank 0 with backend.dedicated=true", "It works on no client.")
        else:
            in_range(KEY, speed, above=0, most=10**9)


class Pace:
    """The speeds of all seats, in their order; a dedicated coordinator's is 0.

    A seat is a rank's place. Who replaces a rank takes its seat over, on the same device of the same machine, and with
    it the speed; should it be another now, the next rounds show it.
    """

    def __init__(self, asked: str | Sequence[float], ranks: int, dedicated: bool) -> None:
        self.measured = asked == "auto"
        self.speeds = [1.0] * ranks if isinstance(asked, str) else [float(speed) for speed in asked]
        if dedicated:
            self.speeds[0] = 0.0
        self.rates = [deque[float](maxlen=KEPT) for _ in range(ranks)]
        self.idle = [0] * ranks
        self.longest = deque[float](maxlen=KEPT)    # shares' seconds

    def of(self, seats: Sequence[int]) -> list[float]:
        """Return the speeds of some seats."""
        return [self.speeds[seat] for seat in seats]

    def learn(self, spent: Mapping[int, tuple[float, float]]) -> bool:
        """Take in a round, by seat: the cost that was done, and in how many seconds; return whether speeds changed.

        0 seconds tell nothing.
        """
        if not self.measured:
            return False
        before = list(self.speeds)
        self.longest.append(max(seconds for _, seconds in spent.values()))
        for seat, (cost, seconds) in spent.items():
            self.idle[seat] = 0 if cost else self.idle[seat] + 1
            if cost and seconds:
                self.rates[seat].append(cost / seconds)
            if self.idle[seat] == IDLE:
                # Its slowness may have passed, and nothing would ever show that. If it has not, one more round shows it
                # beside those that are kept; if it has, they are the outliers among later ones.
                self.idle[seat] = 0
                self.speeds[seat] = min(2 * self.speeds[seat], max(self.speeds))
                self.rates[seat] = deque(list(self.rates[seat])[1 - FEW:], maxlen=KEPT)
        # Were single rounds left out that are too short, those would be left in which somebody happened to be held up.
        if median(self.longest) >= WORTH:
            self._judge([seat for seat in spent if self.speeds[seat] and len(self.rates[seat]) >= FEW])
        return self.speeds != before

    def _judge(self, seats: Sequence[int]) -> None:
        """Adopt other speeds if by the present ones some of these seats are plainly faster than thought, or slower."""
        if not seats:
            return
        low, high = ({seat: reach(self.rates[seat])[end] for seat in seats} for end in (0, 1))
        if max(low[s] / self.speeds[s] for s in seats) <= min(high[s] / self.speeds[s] for s in seats):
            return
        middle = {seat: median(self.rates[seat]) for seat in seats}
        order = sorted(seats, key=lambda seat: -middle[seat])
        fastest = like = order[0]
        for seat in order:
            if low[like] > high[seat]:
                like = seat
            self.speeds[seat] = rounded(middle[like] / middle[fastest])


def reach(rates: Sequence[float]) -> tuple[float, float]:
    """Return between which speeds a rank's own may lie: two ranks differ plainly if theirs have no speed in common."""
    out, margin = len(rates) // OUT, sqrt(PLAIN if len(rates) >= MANY else CLEAR)
    inner = sorted(rates)[out:len(rates) - out]
    return inner[0] / margin, inner[-1] * margin


def rounded(speed: float) -> float:
    """Return the nearest of 1, 0.79, 0.63, 0.5, 0.4, 0.32, ...: a tenth of a decade apart, two digits each."""
    return float(f"{10 ** (round(10 * log10(speed)) / 10):.2g}")
