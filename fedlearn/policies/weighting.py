"""The weight of each client's reply, w_m, and what the weighted sum is divided by.

Let n_m be the samples of client m, n those of all N clients, p_m = n_m / n, S the cohort, Delta_m an
upload. The schemes, after Li et al., "On the Convergence of FedAvg on Non-IID Data" (ICLR 2020):

========  ===================================  ==============================  ========================
name      server receives                      goes with sampling              expectation
========  ===================================  ==============================  ========================
ratio     sum n_m Delta_m / sum n_m over S     uniform, full, cyclic, one      **biased** unless full
uniform   sum Delta_m / abs(S)                 uniform, full, cyclic, one      (1/N) sum Delta_m
scheme1   plain mean over the draws            proportional, temperature       sum p_m Delta_m
scheme2   sum p_m (N / abs(S)) Delta_m         uniform, full                   sum p_m Delta_m
========  ===================================  ==============================  ========================

``ratio`` is the default because it is what most published code does. It is a ratio estimator: when
clients with more data move differently, its expectation under sampling is not sum p_m Delta_m.
``scheme1`` removes the bias at a smaller variance, ``scheme2`` at a larger one: its weights do not
sum to one, so that it may be applied to increments only, never to models. With ``sampling=temperature``
the p_m of ``scheme1`` are the probabilities of a draw; ``client_curriculum`` goes with ratio and uniform.
A reply that is not accepted leaves the sum; its weight leaves the denominator too, except under ``scheme2``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..errors import ConfigError
from .sampling import Sampling


class Weights(NamedTuple):
    """The weights ``w`` of a planned cohort, float64 [S].

    The mean upload is the sum of w_m u_m over the accepted replies, divided by ``denominator``, or by
    their total weight where that is None (``w`` has mean 1 over the planned cohort then).
    """

    w: np.ndarray
    denominator: float | None


class Weighting(ABC):
    """A rule that weighs replies; ``samplings`` are the names of those it is right for."""

    name: ClassVar[str]
    samplings: ClassVar[tuple[str, ...]]

    def check(self, sampling: Sampling) -> None:
        """Refuse a sampling that this weighting is not made for.

        Raises:
            ConfigError: naming ``weighting`` and both choices.
        """
        if sampling.name not in self.samplings:
            better = "scheme1" if sampling.replacement else "ratio"
            allowed = " or ".join(f"sampling={name}" for name in self.samplings)
            raise ConfigError("weighting", self.name, f"{self.name} only with {allowed}",
                              f"Found sampling={sampling.name}; choose weighting={better} for it.")

    @abstractmethod
    def weights(self, ids: np.ndarray, counts: np.ndarray, sizes: np.ndarray, total: int,
                population: int) -> Weights:
        """Return the weights of a cohort.

        ``ids``, ``counts`` and ``sizes`` [S] are the cohort's clients, how often each was drawn and
        how many samples each has; ``total`` is n, the samples of all ``population`` = N clients.
        """


@dataclass(frozen=True)
class RatioWeighting(Weighting):
    """sum n_m Delta_m / sum n_m over the cohort: the usual code; biased under sampling."""

    name: ClassVar[str] = "ratio"
    samplings: ClassVar[tuple[str, ...]] = ("uniform", "full", "cyclic", "one", "client_curriculum")

    def weights(self, ids: np.ndarray, counts: np.ndarray, sizes: np.ndarray, total: int,
                population: int) -> Weights:
        return Weights(sizes / sizes.mean(), None)


@dataclass(frozen=True)
class UniformWeighting(Weighting):
    """The plain mean over the cohort: every client counts alike, whatever its size."""

    name: ClassVar[str] = "uniform"
    samplings: ClassVar[tuple[str, ...]] = ("uniform", "full", "cyclic", "one", "client_curriculum")

    def weights(self, ids: np.ndarray, counts: np.ndarray, sizes: np.ndarray, total: int,
                population: int) -> Weights:
        return Weights(np.ones(len(ids)), None)


@dataclass(frozen=True)
class SchemeOne(Weighting):
    """The plain mean over draws made with probability p_m (Scheme I): unbiased, variance about 1/S."""

    name: ClassVar[str] = "scheme1"
    samplings: ClassVar[tuple[str, ...]] = ("proportional", "temperature")

    def weights(self, ids: np.ndarray, counts: np.ndarray, sizes: np.ndarray, total: int,
                population: int) -> Weights:
        return Weights(counts / counts.mean(), None)


@dataclass(frozen=True)
class SchemeTwo(Weighting):
    """sum p_m (N / S) Delta_m with the planned S (Scheme II): unbiased, increments only."""

    name: ClassVar[str] = "scheme2"
    samplings: ClassVar[tuple[str, ...]] = ("uniform", "full")

    def weights(self, ids: np.ndarray, counts: np.ndarray, sizes: np.ndarray, total: int,
                population: int) -> Weights:
        return Weights(sizes * (population / total), float(len(ids)))
