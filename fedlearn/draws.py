"""Which samples a client's mini-batches hold: one array for a whole round, cut into batches as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Draws(Sequence[Tensor]):
    """The mini-batches of one client's round: slices of ``order`` [n], int64, of the lengths ``sizes``.

    ``order`` holds what is drawn, one batch after another; ``whole`` says that every batch is all of it.
    """

    __slots__ = ("order", "sizes", "whole", "starts")

    def __init__(self, order: np.ndarray, sizes: Sequence[int], whole: bool = False) -> None:
        self.order, self.sizes, self.whole = order, sizes, whole
        self.starts = [0] * len(sizes) if whole else [0, *accumulate(sizes[:-1])]

    def __len__(self) -> int:
        """Return K, the number of batches."""
        return len(self.sizes)

    def __getitem__(self, k: Any) -> Any:
        """Return batch k as an index tensor [samples], a view."""
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        start = self.starts[k]
        return torch.from_numpy(self.order[start:start + self.sizes[k]])
