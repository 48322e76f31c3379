"""Minibatch Adam: one Adam step a round on the clipped mean of all gradients, the counterpart of Local Adam.

The comparator of Z. Cheng, M. Glasgow, "Convergence of Distributed Adaptive Optimization with Local Updates",
ICLR 2025: as many gradients and rounds as Local Adam, all gradients of a round taken at the same point.

    client m:   dx = -(1 / K) sum_k g_m(x; z_k)
    server:     g = clip(-sum_m w_m dx, rho)
                u <- beta_1 u + (1 - beta_1) g;   v <- beta_2 v + (1 - beta_2) g^2
                x <- x - eta u / sqrt(v + lambda^2)

=========  =========  ============  =================================================================
symbol     field      default       where the default comes from
=========  =========  ============  =================================================================
eta        lr         0.001         as Local Adam here; its best value is often larger
beta_2     beta2      0.99          as Local Adam here
lambda     lam        1e-3          as Local Adam here
=========  =========  ============  =================================================================

The other fields are those of minibatch SGDM. As in Local Adam there is no bias correction, and lambda^2 stands
inside the root.

Deviations: those of minibatch SGDM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..contracts import Msg, RoundInfo, Tree, Vec
from ..errors import in_range
from .local_adam import State
from .local_sgdm import clipped
from .minibatch_sgdm import MinibatchSGDM


@dataclass(frozen=True)
class MinibatchAdam(MinibatchSGDM):
    """All gradients of a round at the broadcast model; Adam and clipping at the server."""

    lr: float = 0.001
    beta2: float = 0.99
    lam: float = 1e-3

    @property
    def coordinatewise(self) -> bool:       # type: ignore[override]
        """A norm is of the whole gradient."""
        return self.clip == "coordinates"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("algorithm.beta2", self.beta2, least=0, most=1)
        in_range("algorithm.lam", self.lam, above=0)

    def server_init(self, x0: Vec) -> Tree:
        return State(x0, torch.zeros_like(x0), torch.zeros_like(x0))

    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> Tree:
        g = clipped(-mean["dx"], self.rho, self.clip)
        u = self.beta1 * s.u + (1 - self.beta1) * g
        v = self.beta2 * s.v + (1 - self.beta2) * g.square()
        return State(s.x - self.lr * info.client_factor * info.lr_factor * u / (v + self.lam**2).sqrt(), u, v)
