"""Random data for linear models: Gaussian features, and a linear score that labels come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import in_range
from ..seeds import generator
from .synthetic import check_sizes, client_sizes


@dataclass(frozen=True)
class LinearData:
    """Client m draws a ~ N(0, Sigma_m) and scores a . w_m.

    Sigma_m is diagonal, from 1 to 1 / ``condition``, each entry times exp(``covariate_shift`` N(0, 1));
    w_m lies at the root mean square distance ``concept_shift`` from a common w of the norm
    ``weight_norm``. Sizes follow a power law: ``size_exponent`` 0 makes them equal. Client m's
    samples depend on the seed, m and their number only.

    Raises:
        ConfigError: if a dial is out of range, naming it.
    """

    dimension: int = 20
    samples_per_client: int = 100
    size_exponent: float = 0.0
    condition: float = 10.0
    covariate_shift: float = 0.5
    concept_shift: float = 0.5
    weight_norm: float = 1.0

    def __post_init__(self) -> None:
        in_range("task.dimension", self.dimension, least=1)
        check_sizes(self.samples_per_client, self.size_exponent)
        in_range("task.condition", self.condition, least=1, most=1e8)
        in_range("task.covariate_shift", self.covariate_shift, least=0, most=5)
        in_range("task.concept_shift", self.concept_shift, least=0)
        in_range("task.weight_norm", self.weight_norm, least=0)

    def sizes(self, clients: int, seed: int) -> np.ndarray:
        """Return the samples of each client, int64 [clients]."""
        in_range("clients", clients, least=1)
        rng = generator(seed, "problem", 0, 1)
        return client_sizes(clients, self.samples_per_client, self.size_exponent, rng)

    def samples(self, seed: int, client: int, count: int, rng: np.random.Generator
                ) -> tuple[np.ndarray, np.ndarray]:
        """Return features [count, P] and scores [count] of a client, drawn with ``rng``."""
        common = generator(seed, "problem", 0, 0).standard_normal(self.dimension)
        own = generator(seed, "problem", 1, client)
        shift = np.exp(self.covariate_shift * own.standard_normal(self.dimension))
        deviations = np.sqrt(np.geomspace(1, 1 / self.condition, self.dimension) * shift)
        weights = common * (self.weight_norm / np.linalg.norm(common))
        weights = weights + self.concept_shift / np.sqrt(self.dimension) * own.standard_normal(self.dimension)
        features = rng.standard_normal((count, self.dimension)) * deviations
        return features, features @ weights
