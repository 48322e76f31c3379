"""Which clients work in a round, and how often each was drawn.

``uniform`` draws without replacement, ``proportional`` is Scheme I of Li et al. (ICLR 2020): with
replacement, client m with probability p_m = n_m / n. Which weights belong to which sampling is said
in ``weighting.py``. The cost of a draw follows the cohort, not the population.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ConfigError, in_range

Cohort = tuple[np.ndarray, np.ndarray]


class Sampling(ABC):
    """A rule that chooses the cohort of a round; ``name`` is how weightings call it.

    ``travels``: models go between a server and the clients; not where the only client is its own server.
    ``replacement``: a client may be drawn several times for one round. ``horizon``: it depends on how many rounds
    there are. ``by_loss``: it is told the clients' last losses.
    """

    name: ClassVar[str]
    replacement: ClassVar[bool] = False
    horizon: ClassVar[bool] = False
    by_loss: ClassVar[bool] = False
    travels: ClassVar[bool] = True

    def cohort(self, sizes: np.ndarray, size: int | None, rng: np.random.Generator, round: int) -> Cohort:
        """Return the sorted ids [S] of the round's clients and how often each was drawn [S], both int64.

        ``sizes`` [clients] are the clients' samples (pass the same array every round), ``size`` the
        number of draws (None: as many as there are clients), ``rng`` the round's own generator and
        ``round`` counts from 0.

        Raises:
            ConfigError: naming ``cohort``, if more clients are asked for than exist, or fewer than 1.
        """
        population = len(sizes)
        size = population if size is None else size
        if not 1 <= size <= population:
            raise ConfigError("cohort", size, f"1 to {population}, the number of clients",
                              "Ask for fewer clients per round, or raise clients." if size > 0 else "")
        return self._draw(sizes, size, rng, round)

    def knowing(self, losses: Mapping[int, float], rounds: int) -> Sampling:
        """Return the rule with each client's mean loss in its last round, for a run of so many rounds."""
        return self

    @abstractmethod
    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        """Return ids and counts; 1 <= size <= len(sizes) holds."""


@dataclass(frozen=True)
class UniformSampling(Sampling):
    """Every cohort of the asked size is equally likely: without replacement."""

    name: ClassVar[str] = "uniform"

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        return _once(rng.choice(len(sizes), size, replace=False, shuffle=False))


@dataclass(frozen=True)
class FullParticipation(Sampling):
    """Every client works in every round."""

    name: ClassVar[str] = "full"

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        if size != len(sizes):
            raise ConfigError("cohort", size, f"null or {len(sizes)}, all clients, with sampling=full",
                              "Choose sampling=uniform to let only some of them work in a round.")
        return _once(np.arange(size))


@dataclass(frozen=True)
class ProportionalSampling(Sampling):
    """With replacement, client m with probability p_m = n_m / n at each draw (Scheme I).

    A client drawn twice works once and counts twice.
    """

    name: ClassVar[str] = "proportional"
    replacement: ClassVar[bool] = True

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        upto = self._cumulative(sizes)
        drawn = np.searchsorted(upto, rng.integers(upto[-1], size=size), side="right")
        ids, counts = np.unique(drawn, return_counts=True)
        return ids.astype(np.int64), counts.astype(np.int64)

    def _cumulative(self, sizes: np.ndarray) -> np.ndarray:
        # Once per array of sizes and not once per round, or a round would cost O(population).
        known: tuple[np.ndarray, np.ndarray] | None = self.__dict__.get("_known")
        if known is None or known[0] is not sizes:
            known = (sizes, np.cumsum(sizes, dtype=np.int64))
            self.__dict__["_known"] = known
        return known[1]


@dataclass(frozen=True)
class CyclicSampling(Sampling):
    """Blocks of clients in the fixed order of their ids, starting again after the last one."""

    name: ClassVar[str] = "cyclic"

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        return _once((round * size + np.arange(size)) % len(sizes))


@dataclass(frozen=True)
class OneMachine(Sampling):
    """The same client in every round, by itself: it keeps the model, and no bytes are counted.

    Raises:
        ConfigError: if ``client`` is below 0, or there is no client of that id.
    """

    name: ClassVar[str] = "one"
    travels: ClassVar[bool] = False

    client: int = 0

    def __post_init__(self) -> None:
        in_range("sampling.client", self.client, least=0, whole=True)

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        if size not in (1, len(sizes)):
            raise ConfigError("cohort", size, "1 or null with sampling=one", "Only one client ever works.")
        if self.client >= len(sizes):
            raise ConfigError("sampling.client", self.client, f"0 to {len(sizes) - 1}, the clients' ids")
        return _once(np.array([self.client]))


def _once(ids: np.ndarray) -> Cohort:
    return np.sort(ids).astype(np.int64, copy=False), np.ones(len(ids), dtype=np.int64)
