"""FedAdam: the mean difference of the clients is the pseudo-gradient of an adaptive server.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan,
"Adaptive Federated Optimization", ICLR 2021, Algorithm 2 (FedAdam).

    client m:   y_0 = x;  y_{k+1} = y_k - eta_l g_m(y_k);  Delta_m = y_K - x
    server:     Delta = sum_m w_m Delta_m
                m <- beta_1 m + (1 - beta_1) Delta
                v <- beta_2 v + (1 - beta_2) Delta^2
                x <- x + eta m / (sqrt(v) + tau)

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta_l   lr           0.1      as FedAvg here; the paper tunes it on a grid of powers of 10^(1/2)
eta     server_lr    0.01     the low end of what the authors advise for Adam (10^-2 to 1)
beta_1  beta1        0.9      the paper
beta_2  beta2        0.99     the paper
tau     tau          1e-3     the paper; it dominates the effective step size, tune it
v_-1    v0           1e-6     the paper asks for v_-1 >= tau^2; this is tau^2 at the default tau
======  ===========  =======  ===================================================================

Deviations: none; in particular no bias correction, as in the paper. FedAdagrad and FedYogi of the
same algorithm differ in the one line of ``second_moment``; what the three share is ``AdaptiveServer``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import in_range


class State(NamedTuple):
    """The server's model and the first and second moment of the mean difference."""

    x: Vec
    m: Vec
    v: Vec


@dataclass(frozen=True)
class AdaptiveServer(ServerAlgorithm):
    """Local SGD on each client, a server that adapts its step size to each coordinate."""

    lr: float = 0.1
    server_lr: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3
    v0: float = 1e-6

    local_sgd: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.beta1", self.beta1, least=0, below=1)
        in_range("algorithm.tau", self.tau, above=0)
        in_range("algorithm.v0", self.v0, least=0)

    def server_init(self, x0: Vec) -> State:
        return State(x0, torch.zeros_like(x0), torch.full_like(x0, self.v0))

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad(y), alpha=-self.lr * info.lr_factor)

    @abstractmethod
    def second_moment(self, v: Vec, delta: Vec) -> Vec:
        """Return the next second moment: the line in which the paper's three methods differ."""

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        m = self.beta1 * s.m + (1 - self.beta1) * mean["dx"]
        v = self.second_moment(s.v, mean["dx"])
        return State(s.x + self.server_lr * info.lr_factor * m / (v.sqrt() + self.tau), m, v)


@dataclass(frozen=True)
class FedAdam(AdaptiveServer):
    """Local SGD on each client, Adam on the server."""

    beta2: float = 0.99

    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("algorithm.beta2", self.beta2, least=0, below=1)

    def second_moment(self, v: Vec, delta: Vec) -> Vec:
        return self.beta2 * v + (1 - self.beta2) * delta.square()
