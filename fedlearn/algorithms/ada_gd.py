"""ADA-GD: gradient descent that keeps its agents from leaving.

M. Han, K. K. Patel, H. Shao, L. Wang, "On the Effect of Defections in Federated Learning and How to Prevent Them",
2023 (Adaptive Defection-aware Aggregation for Gradient Descent). An agent leaves for good once its loss at a
broadcast model is at most eps.

    agent m:    g_m = grad F_m(x);  send g_m and F_m(x)
    server:     D = {m: F_m(x) - eta |g_m| <= eps + margin}      (a step of length eta could make them leave)
                D empty:       v = -sum_m w_m g_m
                all in D:      v = 0: everybody's loss is within eps + margin + eta |g_m|
                else:          v = -(I - P) sum_{m not in D} w_m g_m,  P the projector on the span of g_m, m in D
                x <- x + eta v min(1, 1 / |v|)

For convex F_m nobody ever leaves: F_m(x + eta v) >= F_m(x) + eta <g_m, v>, where the product is 0 for m in D, and at
least -|g_m| for the others. Where all are in D, F_m <= 2 eps for eta <= sqrt(eps) / (2 sqrt(H)).

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.01     the theory: at most sqrt(eps) / (2 sqrt(H)), H the smoothness
eps     eps          0.01     the loss at which agents are content; as in modifiers.defection.eps
        margin       0.0      0 for whole gradients and losses; with mini-batches a few standard errors of the loss
w_m     (weighting)           uniform is the paper's; among the others than D they are scaled to add up to 1
======  ===========  =======  ===================================================================

Deviations: the rule of prediction is our reading of the paper; it is safe by the argument above. The theory has one
step on all data (local.steps=1, local.batch_size=null) and everybody in every round; K steps on mini-batches are all
taken at x, and their gradients and losses averaged. A schedule's factors multiply eta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, ServerState, StepInfo, Tree, Vec
from ..errors import in_range
from ..vectors import norm


class Local(NamedTuple):
    """The broadcast model, at which the client stays, and the sums of its gradients and losses [..., 1] there."""

    x: Vec
    gradients: Vec
    losses: Vec


@dataclass(frozen=True)
class AdaGD(ServerAlgorithm):
    """Gradient descent by the others' gradients, orthogonally to those of predicted defectors."""

    lr: float = 0.01
    eps: float = 0.01
    margin: float = 0.0

    individual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.eps", self.eps, above=0)
        in_range("algorithm.margin", self.margin, least=0)

    def local_init(self, b: Msg, c: Tree) -> Local:
        return Local(b["x"], torch.zeros_like(b["x"]), torch.zeros_like(b["x"][..., :1]))

    def local_step(self, y: Local, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Local:
        y.gradients.add_(oracle.grad(b["x"]))
        y.losses.add_(oracle.value(b["x"]))
        return y

    def local_finish(self, y: Local, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": -y.gradients / info.steps, "loss": y.losses / info.steps}, c

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        down, eta = mean["dx"], self.lr * info.client_factor * info.lr_factor
        near = (mean["loss"] - eta * norm(down) <= self.eps + self.margin).squeeze(-1)
        if near.all():
            return s
        weights = torch.tensor(info.weights or [1.0] * len(down)).to(down)[~near]
        v = weights @ down[~near] / weights.sum()
        if near.any():
            axes = span(down[near])
            for _ in range(2):      # the second time takes out what rounding left
                v = v - axes.mT @ (axes @ v)
        return ServerState(s.x + eta * v / norm(v).clamp_min(1))


def span(rows: Vec) -> Vec:
    """Return an orthonormal basis, as rows, of what the rows [n, P] span."""
    _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
    return axes[sizes > max(rows.shape) * torch.finfo(rows.dtype).eps * sizes[0]]
