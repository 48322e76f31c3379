"""FedPOSGD: federated bandit optimisation, where a machine sees nothing but the loss of the point it plays.

K. K. Patel, L. Wang, A. Saha, N. Srebro, "Federated Online and Bandit Convex Optimization", ICML 2023 (FedPOSGD); the
estimate of the gradient is that of A. D. Flaxman, A. T. Kalai, H. B. McMahan, SODA 2005.

    machine m, each step t:   w = Proj(x);  u uniform on the unit sphere of R^d
                              play w + delta u and suffer f = f_t(w + delta u)
                              x <- x - eta (d f / delta) u
    every K steps:            x <- x_0 + beta mean_m (x_m - x_0)

Proj projects onto the ball of radius B around 0, lazily: what is stepped and averaged is the point before it. One
local step is one step of the game. ``played_loss`` among the metrics is the mean of all losses suffered so far, over
machines and steps: less the loss of a fixed x there, it is the average regret against that x.

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.001    the theory: of the order B / (d F sqrt(T)), F bounding the losses; tune it
beta    server_lr    1.0      plain averaging
delta   delta        0.1      the theory balances d / delta against G delta; tune it
B       radius       1.0      bounds the comparator; null: no projection
K       (run.local)           local.steps
======  ===========  =======  ===================================================================

Deviations: the played loss is sent along, one scalar, and not used but for the metric. The projection is our reading
of the paper's one-point method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import in_range
from ..vectors import norm


class State(NamedTuple):
    """The server's point before projection, the mean [1] of the losses played so far, and the steps [1] in it."""

    x: Vec
    played: Vec
    steps: Vec


class Local(NamedTuple):
    """The machine's point before projection, and the sum [..., 1] of the losses it suffered."""

    y: Vec
    played: Vec


@dataclass(frozen=True)
class FedPOSGD(ServerAlgorithm):
    """Gradient descent with one value of the loss at each step; periodic averaging."""

    lr: float = 0.001
    server_lr: float = 1.0
    delta: float = 0.1
    radius: float | None = 1.0

    unweighted: ClassVar[frozenset[str]] = frozenset({"played"})
    equal_steps: ClassVar[bool] = True
    directions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.delta", self.delta, above=0)
        if self.radius is not None:
            in_range("algorithm.radius", self.radius, above=0)

    def projected(self, x: Vec) -> Vec:
        """Return the point of the ball that is nearest to x [..., P]."""
        return x if self.radius is None else x * (self.radius / norm(x).clamp_min(self.radius))

    def play(self, w: Vec, oracle: Oracle) -> tuple[Tensor, Vec]:
        """Return the loss suffered around w, [..., 1], and an estimate of the gradient there."""
        u = oracle.direction(w).clone()
        loss = oracle.value(w + self.delta * u).clone()
        return loss, u * (loss * (w.shape[-1] / self.delta))

    def server_init(self, x0: Vec) -> State:
        return State(x0, x0.new_zeros(1), x0.new_zeros(1))

    def local_init(self, b: Msg, c: Tree) -> Local:
        return Local(b["x"].clone(), torch.zeros_like(b["x"][..., :1]))

    def local_step(self, y: Local, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Local:
        loss, gradient = self.play(self.projected(y.y), oracle)
        y.played.add_(loss)
        return Local(y.y.sub_(gradient, alpha=self.lr * info.lr_factor), y.played)

    def local_finish(self, y: Local, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.y.sub_(b["x"]), "played": y.played / info.steps}, c

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        steps = 1 if info.local is None else info.local.steps_for(1)
        total = s.steps + steps
        played = s.played + (mean["played"] - s.played) * (steps / total)
        return State(s.x + self.server_lr * info.lr_factor * mean["dx"], played, total)

    def model(self, s: State) -> Vec:
        return self.projected(s.x)

    def metrics(self, s: State) -> dict[str, float]:
        return {"played_loss": float(s.played)}
