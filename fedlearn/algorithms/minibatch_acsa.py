"""Minibatch AC-SA: accelerated minibatch SGD, with the gradients and the messages of Local SGD.

G. Lan, "An optimal method for stochastic composite optimization", Mathematical Programming 2012 (AC-SA); S. Ghadimi,
G. Lan, "Optimal stochastic approximation algorithms for strongly convex stochastic composite optimization I", SIAM
J. Optimization 2012 (alpha_t, gamma_t). As a method of K gradients per client and round: B. Woodworth, B. Bullins,
O. Shamir, N. Srebro, "The Min-Max Complexity of Distributed Stochastic Convex Optimization with Intermittent
Communication", COLT 2021, equation (10). The strongly convex form is the MB-AC-SGD of H. Yuan, T. Ma, "Federated
Accelerated Stochastic Gradient Descent", NeurIPS 2020.

    client m:   g_m = (1/K) sum_k g_m(x^md; z_k)
    server:     g = sum_m w_m g_m, in round t = 1, 2, ...
      mu = 0:   x^md = alpha_t y + (1 - alpha_t) x,    alpha_t = 2 / (t + 1),  gamma_t = eta t / 2
                y <- y - gamma_t g;    x <- alpha_t y + (1 - alpha_t) x
      mu > 0:   gamma = sqrt(eta / mu),  alpha = 1 / (gamma mu),  beta = alpha + 1
                x^md = y / beta + (1 - 1 / beta) x
                x <- x^md - eta g;     y <- (1 - 1 / alpha) y + x^md / alpha - gamma g

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here; mu = 0: 1 / Gamma of Ghadimi and Lan, see ``step_size``
mu      mu           0.0      the convex form; above 0: strong convexity, that of the l2 term included
eta_g   server_lr    1.0      redundant beside eta; there as in the other algorithms
======  ===========  =======  ===================================================================

Evaluated is x. Only x^md is broadcast; beside it the server keeps x and y.

Deviations: a schedule's factor multiplies eta and gamma; alpha and beta stay. Where clients take different numbers of
steps, each divides by its own K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..contracts import Msg, RoundInfo, Tree, Vec
from ..errors import ConfigError, in_range
from .minibatch_sgd import MinibatchSGD


class State(NamedTuple):
    """The output x, the aggressive sequence y, and x^md, where the next gradients are taken."""

    x: Vec
    y: Vec
    md: Vec


def step_size(H: float, sigma: float, B: float, steps: int) -> float:
    """Return eta = 1 / Gamma for N = ``steps`` steps, each by a gradient of noise ``sigma`` (one call: K = M = 1).

    Gamma = max{2 H, sqrt(2 sigma^2 N (N + 1) (N + 2) / (3 B^2))}, so that E F(x_N) - F* is at most
    4 H B^2 / (N (N + 1)) + 4 sigma B / sqrt(3 N) for an H-smooth convex F and an optimum at distance B.
    Minibatch AC-SA: N = R and sigma / sqrt(M K); local AC-SA on quadratics: N = K R and sigma / sqrt(M).
    """
    n = float(steps)
    return 1 / max(2 * H, (2 * sigma**2 * n * (n + 1) * (n + 2) / 3) ** 0.5 / B)


@dataclass(frozen=True)
class MinibatchACSA(MinibatchSGD):
    """The clients of minibatch SGD; the server accelerates."""

    mu: float = 0.0

    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("algorithm.mu", self.mu, least=0)
        if self.lr * self.mu >= 1:
            raise ConfigError("algorithm.mu", self.mu, f"a number >= 0 and < 1 / algorithm.lr = {1 / self.lr:g}",
                              "A step size above 1 / mu diverges; lower lr.")

    def server_init(self, x0: Vec) -> Tree:
        return State(x0, x0, x0)

    def broadcast(self, s: Tree) -> Msg:
        return {"x": s.md}

    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> Tree:
        dx = self.server_lr * info.lr_factor * mean["dx"]   # minus eta g
        if self.mu:
            alpha = (self.lr * self.mu) ** -0.5     # of gamma = eta alpha = sqrt(eta / mu)
            x, y = s.md + dx, (1 - 1 / alpha) * s.y + s.md / alpha + alpha * dx
            return State(x, y, y / (alpha + 1) + (1 - 1 / (alpha + 1)) * x)
        t = info.round + 1
        now, then = 2 / (t + 1), 2 / (t + 2)    # alpha_t and alpha_{t+1}
        y = s.y + t / 2 * dx
        x = now * y + (1 - now) * s.x
        return State(x, y, then * y + (1 - then) * x)
