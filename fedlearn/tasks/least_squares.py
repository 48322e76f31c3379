"""Least squares: tau is covariate shift, zeta_* is concept shift (and label noise)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.store import ClientStore
from ..errors import ConfigError, in_range
from ..oracles.closed_form import IDENTITY
from ..seeds import generator
from .linear_data import LinearData
from .linear_model import LinearModelTask


@dataclass(frozen=True)
class LeastSquares(LinearData):
    """y = a . w_m + ``noise`` N(0, 1); half the mean squared error, plus l2 / 2 |x|^2.

    Raises:
        ConfigError: if a dial is out of range, naming it.
    """

    noise: float = 0.1
    l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("task.noise", self.noise, least=0)
        in_range("task.l2", self.l2, least=0)

    def build(self, clients: int, seed: int, dtype: torch.dtype) -> LinearModelTask:
        """Return the problem of a seed.

        Raises:
            ConfigError: if there are fewer samples than dimensions and no l2 term: no single optimum.
        """
        sizes = self.sizes(clients, seed)
        if self.l2 == 0 and sizes.sum() < self.dimension:
            raise ConfigError("task.samples_per_client", self.samples_per_client,
                              f"clients x samples_per_client >= dimension = {self.dimension} while task.l2=0",
                              f"{clients} x {self.samples_per_client} = {sizes.sum()}; raise it, or task.l2.")
        pairs = []
        for m, n in enumerate(sizes.tolist()):
            rng = generator(seed, "problem", 2, m)
            features, scores = self.samples(seed, m, n, rng)
            pairs.append((features, scores + self.noise * rng.standard_normal(n)))
        return LinearModelTask(ClientStore.from_clients(pairs), IDENTITY, self.l2, dtype=dtype)
