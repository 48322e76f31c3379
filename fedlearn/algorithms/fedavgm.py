"""FedAvgM: FedAvg with momentum on the server.

T.-M. H. Hsu, H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv 1909.06335, 2019, Section 4.2.

    client m:   y_0 = x;  y_{k+1} = y_k - eta g_m(y_k);  Delta_m = y_K - x
    server:     v <- beta v + sum_m w_m Delta_m
                x <- x + eta_g v

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here
eta_g   server_lr    1.0      the paper; the long-run step is eta_g / (1 - beta), lower it with beta
beta    momentum     0.9      the paper's usual value; 0 is FedAvg
======  ===========  =======  ===================================================================

Deviations: the server has a step size, as in later work; there is no factor 1 - beta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import in_range


class State(NamedTuple):
    """The server's model and its momentum."""

    x: Vec
    v: Vec


@dataclass(frozen=True)
class FedAvgM(ServerAlgorithm):
    """Local SGD on each client, SGD with momentum on the server."""

    lr: float = 0.1
    server_lr: float = 1.0
    momentum: float = 0.9

    coordinatewise: ClassVar[bool] = True
    local_sgd: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.momentum", self.momentum, least=0, below=1)

    def server_init(self, x0: Vec) -> State:
        return State(x0, torch.zeros_like(x0))

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad(y), alpha=-self.lr * info.lr_factor)

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        v = self.momentum * s.v + mean["dx"]
        return State(s.x + self.server_lr * info.lr_factor * v, v)
