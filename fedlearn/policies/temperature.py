"""Temperature sampling of clients, with cooldown.

T. Li, H. Xu, W. Tan, K. Murray, D. Khashabi, "Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets",
NAACL 2025: data sets of very different size are drawn at a temperature, which falls to 1 in the course of training.

    p_m = n_m^(1/tau) / sum_i n_i^(1/tau)      tau = 1: proportional to the size;  tau = inf: uniform

====================  ========  ==============================================================================
symbol                field     where the default comes from
====================  ========  ==============================================================================
tau                   tau       5: usual for multilingual data; the temperature of the first round
                      cooldown  none; step: 1 from round ``at`` on; linear: 1/tau rises linearly to 1 at ``at``
                      at        50, counted from 0; it must be chosen with the number of rounds
====================  ========  ==============================================================================

Clients are drawn with replacement, and each draw counts alike (``weighting=scheme1``): the mean upload has the
expectation sum p_m Delta_m. Weighting by n_m as well would undo the temperature, and is refused. Drawing at tau has the
expectation of drawing proportionally with the weights p_m n / n_m, and a smaller variance where sizes are very unequal.
At tau = 1 the draws are those of ``sampling=proportional``, one by one.

Deviations: the paper draws samples of languages, here whole clients are drawn. A draw costs O(cohort), and O(clients)
in a round in which the temperature changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ConfigError, in_range, one_of
from .sampling import Cohort, ProportionalSampling

COOLDOWNS = ("none", "step", "linear")


@dataclass(frozen=True)
class TemperatureSampling(ProportionalSampling):
    """With replacement, client m with a probability proportional to n_m^(1/tau) at each draw.

    Raises:
        ConfigError: if a field is out of range.
    """

    name: ClassVar[str] = "temperature"

    tau: float = 5.0
    cooldown: str = "none"
    at: int = 50

    def __post_init__(self) -> None:
        in_range("sampling.tau", self.tau, least=1)
        if self.cooldown not in COOLDOWNS:
            raise ConfigError("sampling.cooldown", self.cooldown, one_of(COOLDOWNS, self.cooldown))
        in_range("sampling.at", self.at, least=1, whole=True)

    def temperature(self, round: int) -> float:
        """Return tau in a round (from 0)."""
        if self.cooldown == "none" or round == 0:
            return self.tau
        if round >= self.at:
            return 1.0
        if self.cooldown == "step":
            return self.tau
        return 1 / (1 / self.tau + (1 - 1 / self.tau) * round / self.at)

    def probabilities(self, sizes: np.ndarray, round: int) -> np.ndarray:
        """Return p [clients] in a round."""
        shares = _powers(sizes, self.temperature(round))
        return shares / shares.sum()

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        tau = self.temperature(round)
        if tau == 1:
            return super()._draw(sizes, size, rng, round)
        upto = self._upto(sizes, tau)
        drawn = np.searchsorted(upto, rng.random(size) * upto[-1], side="right")
        ids, counts = np.unique(np.minimum(drawn, len(sizes) - 1), return_counts=True)  # the product may round up
        return ids.astype(np.int64), counts.astype(np.int64)

    def _upto(self, sizes: np.ndarray, tau: float) -> np.ndarray:
        # Once per temperature and not once per round, or a round would cost O(population).
        known = self.__dict__.get("_at_tau")
        if known is None or known[0] is not sizes or known[1] != tau:
            known = (sizes, tau, np.cumsum(_powers(sizes, tau)))
            self.__dict__["_at_tau"] = known
        return known[2]


def _powers(sizes: np.ndarray, tau: float) -> np.ndarray:
    """Return n_m^(1/tau) of all clients, of the largest 1; a client without samples is never drawn."""
    return np.where(sizes > 0, (sizes / sizes.max()) ** (1 / tau), 0.0)
