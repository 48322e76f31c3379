"""FedBuff: an asynchronous server that updates whenever its buffer is full.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba, "Federated Learning with
Buffered Asynchronous Aggregation", AISTATS 2022, Algorithm 1.

    client m:   y_0 = x_{t-s};  y_{k+1} = y_k - eta_l g_m(y_k);  Delta_m = y_K - x_{t-s}
    server:     on arrival of Delta_m with staleness s:  sum <- sum + (1 + s)^-a Delta_m
                after B arrivals:  x_{t+1} = x_t + eta_g sum / B;  t <- t + 1;  sum <- 0

======  =================  =======  ==================================================================
symbol  field              default  where the default comes from
======  =================  =======  ==================================================================
eta_l   lr                 0.1      as FedAvg here
eta_g   server_lr          1.0      plain averaging; lower it as concurrency / B grows
B (K)   buffer             10       the paper (its K; here K is the number of local steps)
a       exponent           0.5      the paper's 1 / sqrt(1 + s); 0 ignores staleness
        max_staleness      null     no limit; updates staler than the limit are rejected
beta    momentum           0        none, as in Algorithm 1; the authors' experiments have 0.9
s_bar   average_staleness  0        weights as they are; their code (FLSim) can divide them by that of s_bar
======  =================  =======  ==================================================================

With beta: v <- beta v + sum / B and x_{t+1} = x_t + eta_g v; with s_bar the weight is ((1 + s) / (1 + s_bar))^-a.

Deviations: none. ``buffer=1`` is FedAsync (C. Xie, S. Koyejo, I. Gupta, 2019) in difference form; ``buffer`` = the
number of equally fast clients that work at a time is FedAvg with weighting=uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import (
    ArrivalInfo,
    AsyncServerAlgorithm,
    Msg,
    Oracle,
    RoundInfo,
    StepInfo,
    Tree,
    Vec,
)
from ..errors import in_range


class State(NamedTuple):
    """The server's model and its momentum, () without."""

    x: Vec
    v: Tree


@dataclass(frozen=True)
class FedBuff(AsyncServerAlgorithm):
    """Local SGD from a possibly stale model; the server averages every ``buffer`` arrivals."""

    lr: float = 0.1
    server_lr: float = 1.0
    buffer: int = 10
    exponent: float = 0.5
    max_staleness: int | None = None
    momentum: float = 0.0
    average_staleness: float = 0.0

    local_sgd: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.buffer", self.buffer, least=1)
        in_range("algorithm.exponent", self.exponent, least=0)
        if self.max_staleness is not None:
            in_range("algorithm.max_staleness", self.max_staleness, least=0)
        in_range("algorithm.momentum", self.momentum, least=0, below=1)
        in_range("algorithm.average_staleness", self.average_staleness, least=0)

    def arrival_weight(self, info: ArrivalInfo) -> float:
        if self.max_staleness is not None and info.staleness > self.max_staleness:
            return 0.0
        return ((1 + info.staleness) / (1 + self.average_staleness)) ** -self.exponent

    def server_init(self, x0: Vec) -> State:
        return State(x0, torch.zeros_like(x0) if self.momentum else ())

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad(y), alpha=-self.lr * info.lr_factor)

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        v = self.momentum * s.v + mean["dx"] if self.momentum else mean["dx"]
        return State(s.x + self.server_lr * info.lr_factor * v, v if self.momentum else ())
