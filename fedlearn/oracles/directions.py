"""Random directions for algorithms that see values of the loss only, keyed by client and round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..contracts import ClientOracle, Vec


class Directed:
    """An oracle that also gives directions: for each mini-batch and client one unit vector.

    All else is the oracle's own.
    """

    def __init__(self, oracle: ClientOracle) -> None:
        self.oracle = oracle
        self.streams: Sequence[np.random.Generator] = ()
        self.drawn: Vec | None = None
        self.working = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.oracle, name)

    def follow(self, streams: Sequence[np.random.Generator]) -> None:
        """Take the directions of the clients that were entered from these generators, one each."""
        self.streams = streams

    def at(self, draws: Sequence[Any]) -> None:
        """Set the current mini-batch; its direction is drawn when it is asked for."""
        self.oracle.at(draws)
        self.drawn, self.working = None, len(draws)

    def direction(self, x: Vec) -> Vec:
        """Return a unit vector for each client that still works, uniform on the sphere: [..., P] as ``x``."""
        if self.drawn is None:
            normal = np.stack([stream.standard_normal(x.shape[-1]) for stream in self.streams[:self.working]])
            normal /= np.linalg.norm(normal, axis=1, keepdims=True)
            self.drawn = torch.from_numpy(normal).to(x)
        return self.drawn.view(x.shape)
