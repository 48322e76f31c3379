"""FedProx: local work on the client's objective plus a proximal term.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in
Heterogeneous Networks", MLSys 2020, Algorithm 2.

    client m:   y_0 = x;  y_{k+1} = y_k - eta (g_m(y_k) + mu (y_k - x));  Delta_m = y_K - x
    server:     x <- x + eta_g sum_m w_m Delta_m

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here
mu      mu           0.01     the paper tunes over {0.001, 0.01, 0.1, 1}; mu = 0 is FedAvg
eta_g   server_lr    1.0      the paper's plain averaging
======  ===========  =======  ===================================================================

Deviations: the proximal problem is solved by K SGD steps, the paper's own practical choice, and the
server has a step size. The paper samples clients with probability p_m and averages plainly: choose
sampling=proportional and weighting=scheme1 for that. Its stragglers' partial work is a matter of
the local plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, ServerState, StepInfo, Tree, Vec
from ..errors import in_range


@dataclass(frozen=True)
class FedProx(ServerAlgorithm):
    """Local SGD that is pulled back to the broadcast model."""

    lr: float = 0.1
    mu: float = 0.01
    server_lr: float = 1.0

    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.mu", self.mu, least=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        eta = self.lr * info.lr_factor
        g = oracle.grad(y)
        # lerp_: y <- y + eta mu (x - y), without a temporary; exactly y for mu = 0.
        return y.lerp_(b["x"], eta * self.mu).add_(g, alpha=-eta)

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + self.server_lr * info.lr_factor * mean["dx"])
