"""Independent and identically distributed clients.

McMahan, Moore, Ramage, Hampson, Agueera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, section 3 ("IID").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..raw import RawData
from ..store import ClientStore
from .allot import require_clients


@dataclass(frozen=True)
class IID:
    """Shuffle, then cut into equal parts; sizes differ by at most one."""

    def split(self, raw: RawData, clients: int | None, rng: np.random.Generator, least: int) -> ClientStore:
        """Return the clients' data.

        Raises:
            ConfigError: if there are fewer than clients x least samples.
        """
        clients = require_clients(raw, clients, least)
        return ClientStore.from_parts(raw.train_x, raw.train_y,
                                      np.array_split(rng.permutation(raw.samples), clients))
