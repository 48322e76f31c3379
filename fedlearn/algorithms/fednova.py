"""FedNova: clients that take different numbers of steps send normalised differences.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor, "Tackling the Objective Inconsistency Problem in
Heterogeneous Federated Optimization", NeurIPS 2020, Algorithm 1 and Section 4.

    client m:   y_0 = x;  u <- rho u + g_m(y_k);  y_{k+1} = y_k - eta (u + mu (y_k - x)),  u = 0 at first
                a_m = coefficient of a constant gradient in (x - y_K) / eta, step by step
                      c <- rho c + 1;  a_m <- (1 - eta mu) a_m + c,   c = a_m = 0 at first
                d_m = (y_K - x) / (eta a_m)
    server:     x <- x + eta_g tau_eff eta sum_m w_m d_m,   tau_eff = sum_m w_m a_m

a_m is the paper's norm of the vector of coefficients, K for plain SGD.

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here
eta_g   server_lr    1.0      the paper's own step, tau_eff
rho     momentum     0        plain local SGD; the paper's experiments also use 0.9
mu      mu           0        no proximal term
w_m     (weighting)           ratio: the paper's p_m, normalised over the cohort
======  ===========  =======  ===================================================================

Deviations: a client sends eta a_m, one float, beside d_m: it is the sum of the step sizes (of their
coefficients) that were taken, so that the rule holds where a schedule changes eta within a round. With
momentum and a proximal term at a time, the authors' code adds 1 once more to a_m at each step; here
a_m is what the definition says. No server momentum; the momentum u starts at 0 in each round, as theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, ServerState, StepInfo, Tree, Vec
from ..errors import in_range


class Local(NamedTuple):
    """The iterate, the momentum u (() without), and in float64 [..., 1] c and eta a_m."""

    y: Vec
    u: Tree
    c: Vec
    span: Vec


@dataclass(frozen=True)
class FedNova(ServerAlgorithm):
    """Local SGD, with momentum and a proximal term if asked for, then normalised averaging."""

    lr: float = 0.1
    server_lr: float = 1.0
    momentum: float = 0.0
    mu: float = 0.0

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.momentum", self.momentum, least=0, below=1)
        in_range("algorithm.mu", self.mu, least=0)

    def local_init(self, b: Msg, c: Tree) -> Local:
        u = torch.zeros_like(b["x"]) if self.momentum else ()
        none = torch.zeros_like(b["x"][..., :1], dtype=torch.float64)
        return Local(b["x"].clone(), u, none, none.clone())

    def local_step(self, y: Local, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Local:
        eta = self.lr * info.lr_factor
        g = oracle.grad(y.y)
        if self.momentum:
            g = y.u.mul_(self.momentum).add_(g)
        y.y.lerp_(b["x"], eta * self.mu).add_(g, alpha=-eta)
        y.c.mul_(self.momentum).add_(1)
        y.span.mul_(1 - eta * self.mu).add_(y.c, alpha=eta)
        return y

    def local_finish(self, y: Local, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        span = y.span.to(y.y.dtype)
        return {"d": y.y.sub_(b["x"]).div_(span), "span": span}, c

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + self.server_lr * info.lr_factor * mean["span"] * mean["d"])
