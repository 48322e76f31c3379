"""FedSN-Lite: a stochastic Newton step by Hessian-vector products and a single averaging.

B. Bullins, K. K. Patel, O. Shamir, N. Srebro, B. Woodworth, "A Stochastic Newton Algorithm for Distributed Convex
Optimization", NeurIPS 2021: the practical variant of its experiments.

    client m:   D_0 = 0;  D_{k+1} = D_k - eta (grad f(x; z_k) + hess f(x; z_k) D_k),  k = 0..K-1
                up = D_K, or the mean of D_k over the last half of the steps
    server:     x <- x + beta sum_m w_m up_m

The second-order model of F at x is a quadratic, on which local steps have no bias: its minimiser, the Newton step, is
approached ever better with more machines.

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here; tune it: stability is limited by the noise of the Hessian
beta    server_lr    1.0      whole steps, as in the paper's experiments
        tail         false    send D_K; true: the average over the last half of the steps
w_m     (weighting)           ratio: n_m / n over the cohort
======  ===========  =======  ===================================================================

Deviations: gradient and product are of the same mini-batch, where the theory wants independent ones; that is two
oracle calls a step. What is kept is y_k = x + D_k. Undamped, it diverges where the Newton step does: see FedSN. For
networks that are not convex use other methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, ServerState, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range


class Local(NamedTuple):
    """The point x + D_k, and the sum of D_k over the last half of the steps."""

    y: Vec
    tail: Vec


@dataclass(frozen=True)
class FedSNLite(ServerAlgorithm):
    """Local SGD on the second-order model at the broadcast model, then averaging."""

    lr: float = 0.1
    server_lr: float = 1.0
    tail: bool = False

    coordinatewise: ClassVar[bool] = True
    hessians: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        if not isinstance(self.tail, bool):
            raise ConfigError("algorithm.tail", self.tail, "true or false")

    def local_init(self, b: Msg, c: Tree) -> Tree:
        y = b["x"].clone()
        return Local(y, torch.zeros_like(y)) if self.tail else y

    def newton_step(self, y: Vec, b: Msg, oracle: Oracle, info: StepInfo) -> Vec:
        """Return y after a step of SGD on the second-order model at x."""
        x, eta = b["x"], self.lr * info.lr_factor
        d = y - x
        y.add_(oracle.grad(x), alpha=-eta)
        return y.add_(oracle.hvp(x, d), alpha=-eta)

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        if not self.tail:
            return self.newton_step(y, b, oracle, info)
        point = self.newton_step(y.y, b, oracle, info)
        return Local(point, y.tail.add_((point - b["x"]) * (info.k >= info.steps // 2)))

    def local_finish(self, y: Tree, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        if not self.tail:
            return {"dx": y.sub_(b["x"])}, c
        return {"dx": y.tail / (info.steps - info.steps // 2)}, c

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + self.server_lr * info.lr_factor * mean["dx"])
