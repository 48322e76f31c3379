"""Clients whose samples are made when they are asked for: a population costs 8 bytes a client, whatever they hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, in_range
from ..seeds import generator
from .store import _features, _labels, require_data


@dataclass(frozen=True, eq=False)
class GeneratedStore:
    """``make(client, rng)`` returns a client's n = ``sizes[client]`` samples: (features [n, ...], labels [n, ...]).

    ``sizes`` is int64 [clients]. ``rng`` is keyed by (``seed``, client): whoever asks for a client, and whenever, gets
    the same samples. The clients seen last are kept, up to ``held`` bytes, so that those of a stack are made once and
    not at every step; less than a stack needs makes it slow. Labels of an integer type become int64, as PyTorch's
    losses expect. To send the store to another process ``make`` must be picklable.

    Raises:
        DataError: if a client has no data, naming it.
        ConfigError: if ``held`` is negative.
    """

    sizes: np.ndarray
    make: Callable[[int, np.random.Generator], tuple[Any, Any]]
    seed: int = 0
    held: int = 64 * 2**20

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", np.asarray(self.sizes, dtype=np.int64))
        require_data(self.sizes)
        in_range("held", self.held, least=0)
        # Not a field: what happens to be kept is no part of what the store is.
        object.__setattr__(self, "_kept", OrderedDict())

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.sizes)

    def client(self, m: int) -> tuple[Tensor, Tensor]:
        """Return all samples of client m; they must not be changed.

        Raises:
            DataError: if ``make`` returned another number of samples than ``sizes`` says.
        """
        kept: OrderedDict[int, tuple[Tensor, Tensor]] = self.__dict__["_kept"]
        if m in kept:
            kept.move_to_end(m)
            return kept[m]
        x, y = self.make(m, generator(self.seed, "samples", client=m))
        x, y = _features(x), _labels(y)
        if not len(x) == len(y) == self.sizes[m]:
            raise DataError(f"client {m}: found {len(x)} features and {len(y)} labels made; allowed: "
                            f"{self.sizes[m]} of each, as its size says.")
        kept[m] = x, y
        room = max(1, self.held // max(1, x.nbytes + y.nbytes))
        while len(kept) > room:
            kept.popitem(last=False)
        return x, y

    def batch(self, m: int, index: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return copies of the samples ``index`` [b] of client m, counted from its first."""
        x, y = self.client(m)
        index = torch.as_tensor(index, dtype=torch.int64)
        return x.index_select(0, index), y.index_select(0, index)

    def __reduce__(self) -> tuple:
        return GeneratedStore, (self.sizes, self.make, self.seed, self.held)
