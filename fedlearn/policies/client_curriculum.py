"""Client curriculum: clients with small losses work first, or those with large ones.

S. Vahidian, S. Kadaveru, W. Baek, W. Wang, V. Kungurtsev, C. Chen, M. Shah, B. Lin, "When Do Curricula Work in
Federated Learning?", ICCV 2023 (the ordered scheduling of clients).

    round r of R:   order the clients by their mean loss (curr: ascending, anti: descending);
                    the cohort is drawn uniformly, without replacement, from the first g(r) of all N

======  ========  =======  ======================================================================================
symbol  field     default  where the default comes from
======  ========  =======  ======================================================================================
        order     curr     the paper; its third order, rand, is ``sampling=uniform``
g       pacing    linear   the paper: linear, quad, sqrt, step, exp or log
a       full      0.8      the share of the rounds after which all clients are in; the paper tries 0.2 to 1
b       start     0.2      the share of the clients that is in at once; the paper tries 0.2 to 1
======  ========  =======  ======================================================================================

Easy-first clients can do harm where clients differ much: try both orders beside ``uniform``.

Deviations: the paper sends the model to all clients and asks for their losses; here a client's loss is the mean
mini-batch loss of its last participation, which the server knows without another message, but which is as old as that.
Clients that never took part come before all others, so that everybody's loss is known after about N / S rounds of S
clients. It is looked at in every round, where the paper goes through the chosen clients once before it looks again.
Losses are compared to six digits. A round costs O(N log N), as an order of all clients does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import ConfigError
from ..pacing import Pacing
from .sampling import Cohort, Sampling

ORDERS = ("curr", "anti")


@dataclass(frozen=True)
class ClientCurriculum(Sampling):
    """Uniformly from a growing part of the clients, in the order of their losses.

    Raises:
        ConfigError: if a field is out of range.
    """

    name: ClassVar[str] = "client_curriculum"
    horizon: ClassVar[bool] = True
    by_loss: ClassVar[bool] = True

    order: str = "curr"
    pacing: str = "linear"
    full: float = 0.8
    start: float = 0.2

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError("sampling.order", self.order, " or ".join(ORDERS),
                              "A random order is sampling=uniform." if self.order == "rand" else "")
        try:
            Pacing(self.pacing, self.full, self.start)
        except ConfigError as e:
            raise ConfigError(f"sampling.{e.key}", e.found, e.allowed, e.hint) from None

    def knowing(self, losses: Mapping[int, float], rounds: int) -> Sampling:
        """Return the rule with what is known of the clients' losses, for a run of so many rounds."""
        return _Knowing(self, losses, rounds)

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        return self.knowing({}, round + 1)._draw(sizes, size, rng, round)


@dataclass(frozen=True)
class _Knowing(Sampling):
    """The rule at a time when some losses are known."""

    rule: ClientCurriculum
    losses: Mapping[int, float]
    rounds: int

    def _draw(self, sizes: np.ndarray, size: int, rng: np.random.Generator, round: int) -> Cohort:
        clients, sign = len(sizes), 1 if self.rule.order == "curr" else -1
        pacing = Pacing(self.rule.pacing, self.rule.full, self.rule.start)
        pool = max(size, pacing.available(clients, round, self.rounds))
        scores = np.full(clients, -np.inf)      # of those who never took part
        scores[np.fromiter(self.losses, np.int64, len(self.losses))] = [
            sign * float(f"{loss:.6g}") for loss in self.losses.values()]
        # Among equals, as those without a loss are, chance decides who is in the pool.
        order = np.lexsort((rng.permutation(clients), scores))
        ids = rng.choice(order[:pool], size, replace=False, shuffle=False)
        return np.sort(ids).astype(np.int64), np.ones(size, dtype=np.int64)
