"""FedBuff: an asynchronous server that updates whenever its buffer is full.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated Learning with
Buffered Asynchronous Aggregation", AISTATS 2022, Algorithm 1.

    client m:   y_0 = x_{t-s};  y_{k+1} = y_k - eta_l g_m(y_k);  Delta_m = y_K - x_{t-s}
    server:     on arrival of Delta_m with staleness s:  sum <- sum + (1 + s)^-a Delta_m
                after B arrivals:  x_{t+1} = x_t + eta_g sum / B;  t <- t + 1;  sum <- 0

======  =============  =======  =================================================================
symbol  field          default  where the default comes from
======  =============  =======  =================================================================
eta_l   lr             0.1      as FedAvg here
eta_g   server_lr      1.0      plain averaging; lower it as concurrency / B grows
B (K)   buffer         10       the paper (its K; here K is the number of local steps)
a       exponent       0.5      the paper's 1 / sqrt(1 + s); 0 ignores staleness
        max_staleness  null     no limit; updates staler than the limit are rejected
======  =============  =======  =================================================================

Deviations: no server momentum, and the weights are not normalised by their mean. ``buffer=1`` is
FedAsync (C. Xie, S. Koyejo, I. Gupta, 2019) in difference form; ``buffer`` = the number of equally
fast clients that work at a time is FedAvg with weighting=uniform.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts import (
    ArrivalInfo,
    AsyncServerAlgorithm,
    Msg,
    Oracle,
    RoundInfo,
    ServerState,
    StepInfo,
    Tree,
    Vec,
)
from ..errors import in_range


@dataclass(frozen=True)
class FedBuff(AsyncServerAlgorithm):
    """Local SGD from a possibly stale model; the server averages every ``buffer`` arrivals."""

    lr: float = 0.1
    server_lr: float = 1.0
    buffer: int = 10
    exponent: float = 0.5
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.buffer", self.buffer, least=1)
        in_range("algorithm.exponent", self.exponent, least=0)
        if self.max_staleness is not None:
            in_range("algorithm.max_staleness", self.max_staleness, least=0)

    def arrival_weight(self, info: ArrivalInfo) -> float:
        if self.max_staleness is not None and info.staleness > self.max_staleness:
            return 0.0
        return (1 + info.staleness) ** -self.exponent

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad(y), alpha=-self.lr * info.lr_factor)

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + self.server_lr * info.lr_factor * mean["dx"])
