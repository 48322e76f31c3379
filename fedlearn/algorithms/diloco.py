"""DiLoCo: AdamW on the clients, whose moments stay with them, and Nesterov momentum on the server.

A. Douillard, Q. Feng, A. A. Rusu, R. Chhaparia, Y. Donchev, A. Kuncoro, M. Ranzato, A. Szlam, J. Shen, "DiLoCo:
Distributed Low-Communication Training of Language Models", 2023 (arXiv:2311.08105), Algorithm 1.

    client m:   y = x;  for k = 0..K-1 (AdamW of Loshchilov and Hutter, ICLR 2019):
                    g = g_m(y);   t_m <- t_m + 1;   y <- (1 - eta w) y
                    m_m <- beta_1 m_m + (1 - beta_1) g;   v_m <- beta_2 v_m + (1 - beta_2) g^2
                    y <- y - eta (m_m / (1 - beta_1^t_m)) / (sqrt(v_m / (1 - beta_2^t_m)) + eps)
                dx = y - x;  it keeps m_m, v_m and t_m
    server:     Delta = sum_m w_m dx;   b <- mu b + Delta;   x <- x + eta_g (Delta + mu b)

=========  ============  =======  ==================================================================
symbol     field         default  where the default comes from
=========  ============  =======  ==================================================================
eta        lr            4e-4     the paper, for language models; with a schedule that warms up
eta_g      server_lr     0.7      the paper
mu         momentum      0.9      the paper
beta_1     beta1         0.9      the paper (AdamW's usual)
beta_2     beta2         0.95     the OpenDiLoCo reproduction (S. Jaghouar et al., 2024)
w          weight_decay  0.1      the paper
eps        eps           1e-8     AdamW's usual
=========  ============  =======  ==================================================================

Deviations: none. A client that misses rounds goes on with the moments that it had; the method is meant for all
clients in all rounds. The step count is kept beside the moments as one more number: 2 d + 1 in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Vec
from ..errors import in_range


class State(NamedTuple):
    """The server's model and momentum."""

    x: Vec
    b: Vec


class Moments(NamedTuple):
    """What a client keeps of its AdamW: two moments and the count of steps [..., 1]."""

    m: Vec
    v: Vec
    t: Vec


class Local(NamedTuple):
    """The client's model and its moments."""

    y: Vec
    moments: Moments


@dataclass(frozen=True)
class DiLoCo(ServerAlgorithm):
    """AdamW that stays local, outer Nesterov momentum on the mean difference."""

    lr: float = 4e-4
    server_lr: float = 0.7
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    eps: float = 1e-8

    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        for name in ("momentum", "beta1", "beta2"):
            in_range(f"algorithm.{name}", getattr(self, name), least=0, below=1)
        in_range("algorithm.weight_decay", self.weight_decay, least=0)
        in_range("algorithm.eps", self.eps, above=0)

    def server_init(self, x0: Vec) -> State:
        return State(x0, torch.zeros_like(x0))

    def client_init(self, x0: Vec) -> Moments:
        return Moments(torch.zeros_like(x0), torch.zeros_like(x0), torch.zeros_like(x0[:1]))

    def local_init(self, b: Msg, c: Moments) -> Local:
        return Local(b["x"].clone(), Moments(c.m.clone(), c.v.clone(), c.t.clone()))

    def local_step(self, y: Local, b: Msg, c: Moments, oracle: Oracle, info: StepInfo) -> Local:
        x, (m, v, t), eta = y.y, y.moments, self.lr * info.lr_factor
        g = oracle.grad(x)
        t.add_(1)
        m.mul_(self.beta1).add_(g, alpha=1 - self.beta1)
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        # In double precision, for 1 - beta^t loses digits where t is small.
        first, second = (1 - beta ** t.double() for beta in (self.beta1, self.beta2))
        root = (v / second.to(v.dtype)).sqrt_().add_(self.eps)
        x.mul_(1 - eta * self.weight_decay).sub_(m * (eta / first).to(m.dtype) / root)
        return y

    def local_finish(self, y: Local, b: Msg, c: Moments, info: StepInfo) -> tuple[Msg, Moments]:
        return {"dx": y.y.sub_(b["x"])}, y.moments

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        b = self.momentum * s.b + mean["dx"]
        return State(s.x + self.server_lr * info.lr_factor * (mean["dx"] + self.momentum * b), b)
