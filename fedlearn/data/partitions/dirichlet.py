"""Label skew: each class is spread over the clients by a draw from a Dirichlet distribution.

Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni: Bayesian Nonparametric Federated Learning of
Neural Networks, ICML 2019, section 4; as a benchmark in Li, Diao, Chen, He: Federated Learning on
Non-IID Data Silos, ICDE 2022. For each class c,  p_c ~ Dir_M(alpha * 1),  and client m receives the
share p_{c,m} of its samples. Sizes are unequal, too. (Hsu, Qi, Brown 2019 draw class shares per client
instead and keep sizes equal.)

Deviation: the papers draw again until every client has the minimum, which need not end for a small
alpha; here samples move from the largest clients to those that have too few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import in_range
from ..raw import RawData
from ..store import ClientStore
from .allot import apportion, class_labels, deal, keep_least, require_clients


@dataclass(frozen=True)
class Dirichlet:
    """Concentration ``alpha``: about 100 is nearly IID, 0.1 gives each client few classes."""

    alpha: float = 0.3

    def __post_init__(self) -> None:
        in_range("heterogeneity.alpha", self.alpha, least=1e-6, most=1e6)

    def split(self, raw: RawData, clients: int | None, rng: np.random.Generator, least: int) -> ClientStore:
        """Return the clients' data.

        Raises:
            ConfigError: if there are fewer than clients x least samples.
            DataError: if the labels are not one class per sample.
        """
        clients = require_clients(raw, clients, least)
        labels = class_labels(raw, "dirichlet")
        shares = draw_shares(rng, self.alpha, raw.classes, clients)
        counts = apportion(shares, np.bincount(labels, minlength=raw.classes)).T
        parts = deal(labels, keep_least(counts, least), rng)
        return ClientStore.from_parts(raw.train_x, raw.train_y, parts)


def draw_shares(rng: np.random.Generator, alpha: float, rows: int, columns: int) -> np.ndarray:
    """Draw ``rows`` points from the symmetric Dirichlet distribution, [rows, columns].

    Through the logarithm of gamma variates (Gamma(a) = Gamma(a + 1) * U^(1/a)), so that a tiny alpha,
    where every variate underflows to 0, gives a share of 1 for one column and not 0/0.
    """
    log_gamma = np.log(rng.standard_gamma(alpha + 1, (rows, columns)))
    log_gamma += np.log1p(-rng.random((rows, columns))) / alpha
    shares = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
