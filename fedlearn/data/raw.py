"""A data set before it is split over clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import DataError
from .store import ClientStore


@dataclass(frozen=True, eq=False)
class RawData:
    """Training and test samples in one place, as a task loads them.

    ``train_x`` [n, ...], ``train_y`` [n] (or [n, L] for sequences), ``test_x`` and ``test_y``
    likewise; ``classes`` is the number of classes; ``groups`` int64 [n] is the natural client of
    each training sample, 0 to the number of groups - 1, or None if the data set has no such thing. ``store`` is there
    where the samples are with their clients already: of the training samples nothing is then here but what it holds.

    Raises:
        DataError: if features, labels and groups do not belong together.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    groups: np.ndarray | None = None
    class_names: Sequence[str] | None = None
    group_names: Sequence[str] | None = None
    store: ClientStore | None = None

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) != len(y):
                raise DataError(f"{part} data: found {len(x)} features and {len(y)} labels; allowed: one "
                                "label per sample.")
        if self.groups is not None and len(self.groups) != len(self.train_x):
            raise DataError(f"groups: found {len(self.groups)} entries for {len(self.train_x)} training "
                            "samples; allowed: one per sample.")

    @property
    def samples(self) -> int:
        """The number of training samples."""
        return len(self.train_x)
