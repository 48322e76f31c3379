"""FedAvg, also called Local SGD, with an inner and an outer step size.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient Learning
of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1; the outer step size is that of
S. P. Karimireddy et al., "SCAFFOLD", ICML 2020 (their FedAvg), and of the Local SGD literature.

    client m:   y_0 = x;  y_{k+1} = y_k - eta g_m(y_k),  k = 0..K-1;  Delta_m = y_K - x
    server:     x <- x + eta_g sum_m w_m Delta_m

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      a usual start for small image models; McMahan et al. tune it
eta_g   server_lr    1.0      plain averaging, as in McMahan et al.; tune it too in comparisons
K, b    (run.local)           local.steps or local.epochs, and local.batch_size
w_m     (weighting)           ratio: n_m / n over the cohort, as in their Algorithm 1
======  ===========  =======  ===================================================================

Deviations: the server adds the weighted mean of the differences, which for eta_g = 1 and weights
that sum to one is the weighted mean of the client models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, ServerState, StepInfo, Tree, Vec
from ..errors import in_range


@dataclass(frozen=True)
class FedAvg(ServerAlgorithm):
    """Local SGD on each client, then averaging."""

    lr: float = 0.1
    server_lr: float = 1.0

    coordinatewise: ClassVar[bool] = True
    local_sgd: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad(y), alpha=-self.lr * info.lr_factor)

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + self.server_lr * info.lr_factor * mean["dx"])
