"""Concept shift: on a share of the clients the same features carry other labels.

Sattler, Mueller, Samek: Clustered Federated Learning, IEEE TNNLS 2021 (label permutations); as
"same features, different labels" in Kairouz et al.: Advances and Open Problems in Federated Learning,
2021, section 3.1.

Samples are split IID first; then each chosen client permutes its labels by one random cycle over all
classes, so that no class keeps its label. The test set is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...errors import DataError, in_range
from ..raw import RawData
from ..store import ClientStore
from .iid import IID


@dataclass(frozen=True)
class Concept:
    """A ``share`` of the clients (0 to 1, rounded to whole clients) permutes its labels."""

    share: float = 0.2

    def __post_init__(self) -> None:
        in_range("heterogeneity.share", self.share, least=0, most=1)

    def split(self, raw: RawData, clients: int | None, rng: np.random.Generator, least: int) -> ClientStore:
        """Return the clients' data.

        Raises:
            ConfigError: if there are fewer than clients x least samples.
            DataError: if the labels are not classes, or there is only one.
        """
        if raw.train_y.is_floating_point() or raw.classes < 2:
            raise DataError(f"heterogeneity=concept permutes at least 2 classes; found {raw.classes} "
                            f"class(es) and labels of {raw.train_y.dtype}; use another level.")
        store = IID().split(raw, clients, rng, least)  # its tensors are ours: changed in place below
        for m in rng.permutation(len(store))[: round(self.share * len(store))]:
            cycle = torch.from_numpy(rng.permutation(raw.classes))
            other = torch.empty_like(cycle)
            other[cycle] = cycle.roll(1)
            _, y = store.client(m)
            y.copy_(other[y])
        return store
