"""Pacing functions of curricula: how many of n ordered things are available after a share of the time.

After X. Wu, E. Dyer, B. Neyshabur, "When Do Curricula Work?", ICLR 2021: ``full`` is the share of the time after which
all n are there, ``start`` the share of them that is there at once; linear, quad, sqrt, step, exp and log are the shapes
between. Time counts steps or rounds from 0 to ``total``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ConfigError, in_range, one_of

# What share of that which is not there at once is available at u = t / (full total), in [0, 1].
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda u: u,
    "quad": lambda u: u * u,
    "sqrt": math.sqrt,
    "step": math.floor,
    "exp": lambda u: math.expm1(10 * u) / math.expm1(10),
    "log": lambda u: 1 + 0.1 * math.log(u + math.exp(-10)),
}


@dataclass(frozen=True)
class Pacing:
    """A shape, the share of time ``full`` until everything is available, and the share ``start`` of the first.

    Raises:
        ConfigError: if a value is out of range.
    """

    shape: str = "linear"
    full: float = 0.8
    start: float = 0.2

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError("pacing", self.shape, one_of(SHAPES, self.shape))
        in_range("full", self.full, above=0, most=1)
        in_range("start", self.start, above=0, most=1)

    def available(self, n: int, t: int, total: int) -> int:
        """Return how many of n are available at time ``t`` (from 0) of ``total``, 1 to n."""
        u = min(t / (self.full * total), 1.0)
        first = self.start * n
        return max(1, min(n, int(first + (n - first) * SHAPES[self.shape](u) + 1e-9)))
