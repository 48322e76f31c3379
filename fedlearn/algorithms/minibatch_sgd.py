"""Minibatch SGD with the budget of Local SGD: K gradients per client and round, one server step.

The baseline of B. Woodworth, K. K. Patel, N. Srebro, "Minibatch vs Local SGD for Heterogeneous
Distributed Learning", NeurIPS 2020, Section 3: as many gradients and as many messages as Local SGD,
all gradients of a round taken at the same point.

    client m:   Delta_m = -(eta / K) sum_k g_m(x; z_k)
    server:     x <- x + eta_g sum_m w_m Delta_m

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here; its best value is often larger, up to about 1 / H
eta_g   server_lr    1.0      redundant beside eta; kept so that K = 1 equals FedAvg field by field
======  ===========  =======  ===================================================================

Deviations: where clients take different numbers of steps (local.epochs), each divides by its own K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, ServerState, StepInfo, Tree, Vec
from ..errors import in_range


class Local(NamedTuple):
    """The broadcast model, at which the client stays, and the sum of its steps."""

    x: Vec
    total: Vec


@dataclass(frozen=True)
class MinibatchSGD(ServerAlgorithm):
    """All gradients of a round at the broadcast model; one step by their mean."""

    lr: float = 0.1
    server_lr: float = 1.0

    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)

    def local_init(self, b: Msg, c: Tree) -> Local:
        return Local(b["x"], torch.zeros_like(b["x"]))

    def local_step(self, y: Local, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Local:
        y.total.add_(oracle.grad(b["x"]), alpha=-self.lr * info.lr_factor)
        return y

    def local_finish(self, y: Local, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.total / info.steps}, c

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + self.server_lr * info.lr_factor * mean["dx"])
