"""Logistic regression with an l2 term: convex, smooth, and not quadratic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..data.partitions.allot import apportion
from ..data.store import ClientStore
from ..errors import in_range
from ..oracles.closed_form import LOGISTIC
from ..seeds import generator
from .linear_data import LinearData
from .linear_model import LinearModelTask


@dataclass(frozen=True)
class Logistic(LinearData):
    """P(y = 1) = 1 / (1 + exp(-a . w_m)), then labels are flipped with probability ``flip``.

    ``l2`` > 0 makes the optimum unique, also for separable data. ``test_samples`` are held out,
    from the clients in proportion to their sizes.

    Raises:
        ConfigError: if a dial is out of range, naming it.
    """

    weight_norm: float = 5.0
    flip: float = 0.0
    l2: float = 0.01
    test_samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("task.flip", self.flip, least=0, most=0.5)
        in_range("task.l2", self.l2, above=0)
        in_range("task.test_samples", self.test_samples, least=0)

    def build(self, clients: int, seed: int, dtype: torch.dtype) -> LinearModelTask:
        """Return the problem of a seed."""
        sizes = self.sizes(clients, seed)
        pairs = [self._labelled(seed, m, n, 2) for m, n in enumerate(sizes.tolist())]
        test = None
        if self.test_samples:
            counts = apportion(sizes.astype(np.float64), self.test_samples).tolist()
            parts = [self._labelled(seed, m, n, 3) for m, n in enumerate(counts) if n]
            x, y = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True))
            test = x, y
        return LinearModelTask(ClientStore.from_clients(pairs), LOGISTIC, self.l2, test, dtype)

    def _labelled(self, seed: int, client: int, count: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        rng = generator(seed, "problem", part, client)
        features, scores = self.samples(seed, client, count, rng)
        labels = rng.random(count) < (1 + np.tanh(scores / 2)) / 2  # the logistic function, without overflow
        return features, (labels ^ (rng.random(count) < self.flip)).astype(np.float64)
