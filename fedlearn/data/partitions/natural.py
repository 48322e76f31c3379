"""The data set's own clients: writers, speakers, hospitals, packages.

Caldas, Duddu, Wu, Li, Konecny, McMahan, Smith, Talwalkar: LEAF: A Benchmark for Federated Settings,
2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import ConfigError, DataError
from ..raw import RawData
from ..store import ClientStore


@dataclass(frozen=True)
class Natural:
    """One client per group of the data set; nothing is drawn at random."""

    def split(self, raw: RawData, clients: int | None, rng: np.random.Generator, least: int) -> ClientStore:
        """Return the clients' data; ``clients`` is None or the number of groups.

        Raises:
            ConfigError: if another number of clients is asked for.
            DataError: if the data set has no groups, or one with fewer than ``least`` samples.
        """
        if raw.store is not None:
            sizes = raw.store.sizes
        elif raw.groups is not None:
            sizes = np.bincount(raw.groups, minlength=len(raw.group_names or ()))
        else:
            raise DataError("heterogeneity=natural needs a data set with natural clients; this one has none; "
                            "use another level, e.g. heterogeneity=dirichlet.")
        if clients is not None and clients != len(sizes):
            more = "more" if clients > len(sizes) else "fewer"
            raise ConfigError("clients", clients, f"{len(sizes)}, or null for all groups",
                              f"The data set has {len(sizes)} natural clients, and {clients} is "
                              f"{abs(clients - len(sizes))} {more}.")
        if sizes.min() < least:
            m = int(np.argmin(sizes))
            name = f" ({raw.group_names[m]})" if raw.group_names else ""
            raise DataError(f"heterogeneity=natural: client {m}{name} has {sizes[m]} samples; at least "
                            f"{least} asked ({int((sizes < least).sum())} of {len(sizes)} clients have "
                            "fewer); lower the minimum.")
        if raw.store is not None:
            return raw.store
        assert raw.groups is not None
        order = np.argsort(raw.groups, kind="stable")
        return ClientStore.from_parts(raw.train_x, raw.train_y, np.split(order, np.cumsum(sizes)[:-1]))
