"""Local Adam: local Adam steps with clipped gradients; both moments are averaged with the model.

Z. Cheng, M. Glasgow, "Convergence of Distributed Adaptive Optimization with Local Updates", ICLR 2025,
Algorithm 2 (Local Adam).

    client m:   x_m = x, u_m = u, v_m = v;  for k = 0..K-1:
                    g = clip(g_m(x_m), rho)                         (each coordinate, to [-rho, rho])
                    u_m <- beta_1 u_m + (1 - beta_1) g
                    v_m <- beta_2 v_m + (1 - beta_2) g^2
                    x_m <- x_m - eta u_m / sqrt(v_m + lambda^2)
                dx = x_m - x;  du = u_m - u;  dv = v_m - v
    server:     x <- x + eta_g sum_m w_m dx;   u <- u + sum_m w_m du;   v <- v + sum_m w_m dv

=========  =========  ============  =================================================================
symbol     field      default       where the default comes from
=========  =========  ============  =================================================================
eta        lr         0.001         the usual step size of Adam; eta / lambda <= (1 - beta_1)^2 / H in
                                    the theory
beta_2     beta2      0.99          as FedAdam here; the theory wants 1 - beta_2 to shrink with K and R
lambda     lam        1e-3          the large end of what is used in practice (1e-8 to 1e-3)
u_0, v_0              0             the paper
=========  =========  ============  =================================================================

The other fields are those of Local SGDM. Unlike Adam as it is usually programmed there is no bias correction, and
lambda^2 stands inside the root. With beta_2 = 1 and lambda = 1 this is Local SGDM.

Deviations: those of Local SGDM. The mean of v is kept from falling below 0, where the rounding of an average (or
noise from the pipeline) would take it; an exact sum rounds it to 5e-13 in float32, so that there lambda below
1e-6 adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, StepInfo, Tree, Vec
from ..errors import in_range
from .local_sgdm import LocalSGDM, clipped


class State(NamedTuple):
    """The model and its two moments, of the server or of a client."""

    x: Vec
    u: Vec
    v: Vec


@dataclass(frozen=True)
class LocalAdam(LocalSGDM):
    """Local Adam with clipping; model and both moments are averaged."""

    lr: float = 0.001
    beta2: float = 0.99
    lam: float = 1e-3

    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("algorithm.beta2", self.beta2, least=0, most=1)
        in_range("algorithm.lam", self.lam, above=0)

    def server_init(self, x0: Vec) -> Tree:
        return State(x0, torch.zeros_like(x0), torch.zeros_like(x0))

    def broadcast(self, s: Tree) -> Msg:
        return {"x": s.x, "u": s.u, "v": s.v}

    def local_init(self, b: Msg, c: Tree) -> Tree:
        return State(b["x"].clone(), b["u"].clone(), b["v"].clone())

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        g = clipped(oracle.grad(y.x), self.rho, self.clip)
        y.u.mul_(self.beta1).add_(g, alpha=1 - self.beta1)
        y.v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        y.x.addcdiv_(y.u, (y.v + self.lam**2).sqrt_(), value=-self.lr * info.lr_factor)
        return y

    def local_finish(self, y: Tree, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.x.sub_(b["x"]), "du": y.u.sub_(b["u"]), "dv": y.v.sub_(b["v"])}, c

    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> Tree:
        x = s.x + self.server_lr * info.lr_factor * mean["dx"]
        return State(x, s.u + mean["du"], (s.v + mean["dv"]).clamp_min(0))
