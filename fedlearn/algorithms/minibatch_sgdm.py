"""Minibatch SGDM: one momentum step a round on the clipped mean of all gradients, the counterpart of Local SGDM.

The comparator of Z. Cheng, M. Glasgow, "Convergence of Distributed Adaptive Optimization with Local Updates",
ICLR 2025: as many gradients and rounds as Local SGDM, all gradients of a round taken at the same point.

    client m:   dx = -(1 / K) sum_k g_m(x; z_k)
    server:     g = clip(-sum_m w_m dx, rho);   u <- beta_1 u + (1 - beta_1) g;   x <- x - eta u

=========  =========  ============  =================================================================
symbol     field      default       where the default comes from
=========  =========  ============  =================================================================
eta        lr         0.1           as Local SGDM here; its best value is often larger
beta_1     beta1      0.9           as Local SGDM here
rho        rho        null          no clipping, as Local SGDM here
           clip       coordinates   as Local SGDM here
=========  =========  ============  =================================================================

Deviations: none. The step is the server's, yet it stands for the clients' steps: a schedule scales it as it scales
theirs, by its factor at the first step of the round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import in_range
from .local_sgdm import State, check_clipping, clipped


class Local(NamedTuple):
    """The broadcast model, at which the client stays, and minus the sum of its gradients there."""

    x: Vec
    total: Vec


@dataclass(frozen=True)
class MinibatchSGDM(ServerAlgorithm):
    """All gradients of a round at the broadcast model; momentum and clipping at the server."""

    lr: float = 0.1
    beta1: float = 0.9
    rho: float | None = None
    clip: str = "coordinates"

    @property
    def coordinatewise(self) -> bool:       # type: ignore[override]
        """A norm is of the whole gradient."""
        return self.clip == "coordinates"

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.beta1", self.beta1, least=0, below=1)
        check_clipping(self.rho, self.clip)

    def server_init(self, x0: Vec) -> Tree:
        return State(x0, torch.zeros_like(x0))

    def local_init(self, b: Msg, c: Tree) -> Local:
        return Local(b["x"], torch.zeros_like(b["x"]))

    def local_step(self, y: Local, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Local:
        y.total.sub_(oracle.grad(b["x"]))
        return y

    def local_finish(self, y: Local, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.total / info.steps}, c

    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> Tree:
        g = clipped(-mean["dx"], self.rho, self.clip)
        u = self.beta1 * s.u + (1 - self.beta1) * g
        return State(s.x - self.lr * info.client_factor * info.lr_factor * u, u)
