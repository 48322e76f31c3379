"""Refined schedule: the step sizes that would have suited the gradient norms of a finished run.

A. Defazio, A. Cutkosky, H. Mehta, K. Mishchenko, "Optimal Linear Decay Learning Rate Schedules and Further
Refinements", arXiv 2310.07831, 2023, Algorithm 1 (refinement).

    G_0..G_{T-1}:   norms of the run, of the mean upload of each round (``modifiers=[update_norm]``)
    smoothed:       the median of 2 floor(tau T / 2) + 1 norms around each; reflected beyond the end, held at the start
    w_t = G_t^-power;   eta_t = w_t (w_{t+1} + ... + w_T),  divided by its maximum

======  ======  =======  =====================================================================================
symbol  field   default  where the default comes from
======  ======  =======  =====================================================================================
        run              a run folder, read once, when a run starts: ``norms`` is what it found, and what is saved
G       norms            of that run; give them instead of ``run`` where there is no folder
power   power   2.0      the paper for SGD; 1 for Adam
tau     tau     0.1      the authors' code
        column  l2       l2, or l1: the norm that goes with Adam
======  ======  =======  =====================================================================================

Constant norms give linear decay 1 - t/T, norms that fall at the start a warm-up, norms that rise at the end a faster
decay. The first run's step size must be constant: the mean upload of a round has the step size in it. A time step is a
round, the factor is that of the clients, and with ``server`` of the server too. Tune the base step size anew.

Deviations: the sum goes on to a time T after the last round, with the last weight, so that the schedule reaches 0 there
and not in the last round, which would be wasted. The paper's gradients are the run's mean uploads (pseudo-gradients).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ConfigError, in_range
from .schedule import Schedule

COLUMNS = ("l2", "l1")


@dataclass(frozen=True)
class Refined(Schedule):
    """A factor per round, made of the norms of a finished run of as many rounds.

    Raises:
        ConfigError: if a field is out of range, or a norm is not above 0.
    """

    horizon: ClassVar[bool] = True

    run: str | None = None
    norms: tuple[float, ...] = ()
    power: float = 2.0
    tau: float = 0.1
    column: str = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("schedule.power", self.power, above=0)
        in_range("schedule.tau", self.tau, least=0, most=1)
        if self.column not in COLUMNS:
            raise ConfigError("schedule.column", self.column, " or ".join(COLUMNS))
        for norm in self.norms:
            in_range("schedule.norms", norm, above=0, below=float("inf"))
        if self.warmup:
            raise ConfigError("schedule.warmup", self.warmup, "0 with schedule=refined",
                              "The norms say whether there is a warm-up.")

    def check(self, rounds: int) -> None:
        """Refuse to run without norms, or with those of another number of rounds.

        Raises:
            ConfigError: naming the key.
        """
        if not self.norms:
            raise ConfigError("schedule.run", self.run, "the folder of a finished run with modifiers=[update_norm]",
                              "Or give schedule.norms, a list of one norm for each round.")
        if len(self.norms) != rounds:
            raise ConfigError("rounds", rounds, f"{len(self.norms)}, as the run had whose norms are refined")

    def _decay(self, t: int, horizon: int, k: int) -> float:
        factors = self.__dict__.get("_factors")
        if factors is None:
            factors = self.__dict__["_factors"] = refine(smoothed(self.norms, self.tau), self.power).tolist()
        return factors[min(t, len(factors) - 2)]


def smoothed(norms: tuple[float, ...] | np.ndarray, tau: float) -> np.ndarray:
    """Return the median of each window of 2 floor(tau T / 2) + 1 norms, [T]."""
    given = np.asarray(norms, dtype=np.float64)
    half = int(tau * len(given)) // 2
    if not half:
        return given
    extended = np.pad(given, (0, 2 * (2 * half + 1)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(extended, half, mode="edge"), 2 * half + 1)
    return np.median(windows, axis=1)[:len(given)]


def refine(norms: np.ndarray, power: float) -> np.ndarray:
    """Return the factors of the times 0..T, [T + 1]: the largest is 1, the last 0."""
    weights = (norms / norms.min()) ** -power
    after = np.append(weights, weights[-1])[::-1].cumsum()[::-1]   # w_t + ... + w_T
    factors = np.append(weights * after[1:], 0.0)
    return factors / factors.max()
