"""FedOSGD: federated online optimisation with two values of the loss, or its gradient, at each step.

K. K. Patel, L. Wang, A. Saha, N. Srebro, "Federated Online and Bandit Convex Optimization", ICML 2023; first as
"Distributed Online and Bandit Convex Optimization", OPT 2022 (FedOSGD).

    machine m, each step t:   w = x, or Proj(x);  u uniform on the unit sphere of R^d
      two_point:              play w + delta u and w - delta u, suffer the mean of their losses
                              g = d (f_t(w + delta u) - f_t(w - delta u)) u / (2 delta)
      first_order (FedOGD):   play w, suffer f_t(w);  g = grad f_t(w)
                              x <- x - eta g
    every K steps:            x <- x_0 + beta mean_m (x_m - x_0)

Proj projects onto the ball of radius B around 0, lazily: what is stepped and averaged is the point before it. One
local step is one step of the game. ``played_loss`` among the metrics is the mean of all losses suffered so far, over
machines and steps: less the loss of a fixed x there, it is the average regret against that x.

======  ===========  =========  =================================================================
symbol  field        default    where the default comes from
======  ===========  =========  =================================================================
eta     lr           0.01       the theory: B / (G sqrt(T)) min(1, sqrt(M / d), 1 / (sqrt(K) d^(1/4)) if K > 1)
beta    server_lr    1.0        plain averaging, as in the paper
delta   delta        0.001      small; far above the rounding of the losses. Raise it in float32
        feedback     two_point  the paper's algorithm; first_order: where working together cannot help
B       radius       null       no projection, as in the paper; a number: lazy projection
K       (run.local)             local.steps
======  ===========  =========  =================================================================

Deviations: the played loss is sent along, one scalar, and not used but for the metric. Calls of the oracle for each
step: two values with two_point; with first_order a gradient, and a value that serves the metric.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..contracts import Oracle, Vec
from ..errors import ConfigError
from .fedposgd import FedPOSGD

FEEDBACK = ("two_point", "first_order")


@dataclass(frozen=True)
class FedOSGD(FedPOSGD):
    """Gradient descent with two values or a gradient at each step; periodic averaging."""

    lr: float = 0.01
    delta: float = 0.001
    radius: float | None = None
    feedback: str = "two_point"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedback not in FEEDBACK:
            raise ConfigError("algorithm.feedback", self.feedback, " or ".join(FEEDBACK))

    def play(self, w: Vec, oracle: Oracle) -> tuple[Tensor, Vec]:
        if self.feedback == "first_order":
            loss = oracle.value(w).clone()
            return loss, oracle.grad(w)
        u = oracle.direction(w).clone()
        ahead = oracle.value(w + self.delta * u).clone()
        behind = oracle.value(w - self.delta * u)
        return (ahead + behind) / 2, u * ((ahead - behind) * (w.shape[-1] / (2 * self.delta)))
