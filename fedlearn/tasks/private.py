"""Data that stays on its machines: each reads the clients that it holds from a folder of its own.

The model is that of the configuration, the loss cross-entropy. Batches, steps and sums are those of a run with all
data in one place, and so is the result, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import LocalPlan
from ..data.federation import Federation
from ..data.held import HeldStore, test_set
from ..data.raw import RawData
from ..errors import DataError
from .supervised import SupervisedTask


@dataclass(frozen=True)
class Private:
    """Classify what the machines hold in ``folder``, as `fedlearn split` or ``fedlearn.data.deal`` wrote it."""

    folder: str = "/data"

    def load(self) -> RawData:
        """Return what is here of the data.

        Raises:
            DataError: if the folder is no such one, or damaged.
        """
        folder = Path(self.folder)
        known, store = Federation.read(folder), HeldStore.open(folder)
        test = test_set(folder)
        test_x, test_y = (store.features[:0], store.labels[:0]) if test is None else test
        for name, found, asked in (("features", test_x, store.features), ("labels", test_y, store.labels)):
            if found.shape[1:] != asked.shape[1:] or found.dtype != asked.dtype:
                raise DataError(f"{folder}: found test {name} of {found.dtype} {list(found.shape[1:])}; allowed: "
                                f"{asked.dtype} {list(asked.shape[1:])}, as the clients' samples are.")
        return RawData(store.features, store.labels, test_x, test_y, known.classes, class_names=known.class_names,
                       store=store)


class PrivateTask(SupervisedTask):
    """A supervised task of whose clients ``holds`` have their samples here; ``store`` is a ``HeldStore``."""

    @property
    def holds(self) -> np.ndarray:
        """The clients whose samples are here, int64, rising."""
        return self.store.holds

    def common(self) -> Any:
        """Return what is the same on every machine; a test set is only where models are evaluated."""
        return self.model, self.loss, self.store, self.dtype, self.x0

    def stand_in(self) -> SupervisedTask:
        """Return the same task on random samples, which everybody can have."""
        return SupervisedTask(self.model, self.loss, self.store.stand_in(), None, self.dtype)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Any]:
        """Return K index tensors: slices of the client's shuffled samples.

        Raises:
            DataError: if they are not here.
        """
        self.store.check(client)
        return super().draws(client, rng, local)
