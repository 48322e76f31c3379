"""Label skew: each client holds samples of a fixed number of classes.

McMahan, Moore, Ramage, Hampson, Agueera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, section 3 ("pathological non-IID": samples sorted by label, cut
into shards of equal size, two shards per client).

Deviation: shards are cut within a class, and no client gets two of one class, so that a client has
exactly the number of classes that was asked for; shards of different classes differ in size by what
it takes to use every sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError, in_range
from ..raw import RawData
from ..store import ClientStore
from .allot import class_labels, deal, keep_least, require_clients


@dataclass(frozen=True)
class Shards:
    """Every client has samples of exactly ``classes_per_client`` classes."""

    classes_per_client: int = 2

    def __post_init__(self) -> None:
        in_range("heterogeneity.classes_per_client", self.classes_per_client, least=1)

    def split(self, raw: RawData, clients: int | None, rng: np.random.Generator, least: int) -> ClientStore:
        """Return the clients' data.

        Raises:
            ConfigError: if the clients, their classes and ``least`` do not fit together.
            DataError: if the labels are not one class per sample, or ``least`` cannot be kept
                within the clients' classes.
        """
        clients = require_clients(raw, clients, least)
        labels = class_labels(raw, "shards")
        per_class = np.bincount(labels, minlength=raw.classes)
        holders = self._holders(per_class, clients)
        holds = assign(holders, clients, self.classes_per_client, rng)
        counts = np.zeros_like(holds, dtype=np.int64)
        for c, n in enumerate(per_class):
            members = rng.permutation(np.flatnonzero(holds[:, c]))
            if len(members):
                counts[members, c] = [len(part) for part in np.array_split(np.arange(n), len(members))]
        parts = deal(labels, keep_least(counts, least, own_classes_only=True), rng)
        return ClientStore.from_parts(raw.train_x, raw.train_y, parts)

    def _holders(self, per_class: np.ndarray, clients: int) -> np.ndarray:
        """Return how many clients hold each class, in proportion to its samples, [classes]."""
        k, present = self.classes_per_client, per_class > 0
        shards, key = clients * k, "heterogeneity.classes_per_client"
        if k > present.sum():
            raise ConfigError(key, k, f"1 to {present.sum()}", "There are no more classes with samples.")
        if shards < present.sum():
            raise ConfigError(key, k, f"at least {-(-int(present.sum()) // clients)}",
                              f"{clients} clients x {k} = {shards} shards cannot hold {present.sum()} "
                              "classes, and every sample is used.")
        most = np.minimum(per_class, clients)  # a holder needs a sample; a client holds a class once
        if most.sum() < shards:
            raise ConfigError(key, k, f"at most {int(most.sum()) // clients}",
                              f"{clients} clients x {k} = {shards} shards; the classes have samples for "
                              f"{most.sum()}.")
        holders = present.astype(np.int64)
        for _ in range(shards - int(holders.sum())):  # cut the class whose shards are the largest
            holders[np.argmax(np.where(holders < most, per_class / np.maximum(holders, 1), -1.0))] += 1
        return holders


def assign(holders: np.ndarray, clients: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draw which client holds which class, bool [clients, classes]: k per client, holders[c] per class.

    Client by client, the k classes with the most shards left, ties at random: this never runs into a
    dead end as long as no class has more shards than clients (Gale and Ryser 1957).
    """
    left = holders.copy()
    holds = np.zeros((clients, len(holders)), dtype=bool)
    for m in range(clients):
        order = rng.permutation(len(left))
        chosen = order[np.argsort(-left[order], kind="stable")[:k]]
        holds[m, chosen] = True
        left[chosen] -= 1
    return holds
