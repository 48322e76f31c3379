"""Quantity skew: the sizes of the clients follow a power law, the labels are IID.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys
2020, section 5.1 ("the number of samples per device follows a power law"). The client of rank r
(r = 1 is the largest; ranks are drawn at random) receives a number of samples in proportion to
r^(-exponent).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import in_range
from ..raw import RawData
from ..store import ClientStore
from .allot import apportion, keep_least, require_clients


@dataclass(frozen=True)
class Quantity:
    """Power law with ``exponent``: 0 gives equal sizes, 1 is Zipf's law."""

    exponent: float = 1.0

    def __post_init__(self) -> None:
        in_range("heterogeneity.exponent", self.exponent, least=0, most=10)

    def split(self, raw: RawData, clients: int | None, rng: np.random.Generator, least: int) -> ClientStore:
        """Return the clients' data.

        Raises:
            ConfigError: if there are fewer than clients x least samples.
        """
        clients = require_clients(raw, clients, least)
        ranks = 1 + rng.permutation(clients)
        sizes = apportion(ranks.astype(np.float64) ** -self.exponent, raw.samples)
        sizes = keep_least(sizes[:, None], least)[:, 0]
        parts = np.split(rng.permutation(raw.samples), np.cumsum(sizes)[:-1])
        return ClientStore.from_parts(raw.train_x, raw.train_y, parts)
