"""Local SGDM: local steps with momentum and clipped gradients; the momentum is averaged with the model.

Z. Cheng, M. Glasgow, "Convergence of Distributed Adaptive Optimization with Local Updates", ICLR 2025,
Algorithm 1 (Local SGDM).

    client m:   x_m = x, u_m = u;  for k = 0..K-1:
                    g = clip(g_m(x_m), rho)                         (each coordinate, to [-rho, rho])
                    u_m <- beta_1 u_m + (1 - beta_1) g
                    x_m <- x_m - eta u_m
                dx = x_m - x;  du = u_m - u
    server:     x <- x + eta_g sum_m w_m dx;   u <- u + sum_m w_m du

=========  =========  ============  =================================================================
symbol     field      default       where the default comes from
=========  =========  ============  =================================================================
eta        lr         0.1           as FedAvg here; the theory wants at most (1 - beta_1)^2 / (2 H)
eta_g      server_lr  1.0           plain averaging, as in the paper
beta_1     beta1      0.9           the usual momentum; the paper asks for a constant below 1
rho        rho        null          no clipping, since rho has the scale of the gradients: the paper
                                    asks for at least twice their largest entry, and 99.5% of the
                                    entries of a first round below it is a start
           clip       coordinates   the paper's; norm: the whole gradient, to norm rho sqrt(d), which
                                    its theory covers as well
u_0                   0             the paper
=========  =========  ============  =================================================================

Deviations: the step size eta_g, which the paper does not have, acts on x alone. The output is the last x, as in
practice; the analysis takes a weighted average of (x_{t+1} - beta_1 x_t) / (1 - beta_1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range
from ..vectors import norm

CLIP = ("coordinates", "norm")


class State(NamedTuple):
    """The model and the momentum, of the server or of a client."""

    x: Vec
    u: Vec


@dataclass(frozen=True)
class LocalSGDM(ServerAlgorithm):
    """Local SGD with momentum and clipping; model and momentum are averaged."""

    lr: float = 0.1
    server_lr: float = 1.0
    beta1: float = 0.9
    rho: float | None = None
    clip: str = "coordinates"

    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.beta1", self.beta1, least=0, below=1)
        check_clipping(self.rho, self.clip)

    def server_init(self, x0: Vec) -> Tree:
        return State(x0, torch.zeros_like(x0))

    def broadcast(self, s: Tree) -> Msg:
        return {"x": s.x, "u": s.u}

    def local_init(self, b: Msg, c: Tree) -> Tree:
        return State(b["x"].clone(), b["u"].clone())

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        g = clipped(oracle.grad(y.x), self.rho, self.clip)
        y.u.mul_(self.beta1).add_(g, alpha=1 - self.beta1)
        y.x.add_(y.u, alpha=-self.lr * info.lr_factor)
        return y

    def local_finish(self, y: Tree, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.x.sub_(b["x"]), "du": y.u.sub_(b["u"])}, c

    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> Tree:
        return State(s.x + self.server_lr * info.lr_factor * mean["dx"], s.u + mean["du"])


def clipped(g: Vec, rho: float | None, how: str) -> Vec:
    """Return g [..., P] with each coordinate in [-rho, rho], or with norm at most rho sqrt(P); g for rho None."""
    if rho is None:
        return g
    if how == "coordinates":
        return g.clamp(-rho, rho)
    most = rho * g.shape[-1] ** 0.5
    return g * (most / norm(g).clamp_min(most))


def check_clipping(rho: float | None, how: str) -> None:
    """Refuse a threshold or a way of clipping that there is not.

    Raises:
        ConfigError: naming the key.
    """
    if rho is not None:
        in_range("algorithm.rho", rho, above=0)
    if how not in CLIP:
        raise ConfigError("algorithm.clip", how, " or ".join(CLIP))
