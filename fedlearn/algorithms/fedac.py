"""FedAc: accelerated Local SGD; two coupled sequences on every client, both averaged.

H. Yuan, T. Ma, "Federated Accelerated Stochastic Gradient Descent", NeurIPS 2020, Algorithm 1, with the parameters of
FedAc-I and FedAc-II.

    client m:   w_0, x_0 as broadcast (x is the paper's w^ag);  for k = 0..K-1
                    md  = w_k / beta + (1 - 1 / beta) x_k
                    g   = g_m(md)
                    x_{k+1} = md - eta g
                    w_{k+1} = (1 - 1 / alpha) w_k + md / alpha - gamma g
                dx = x_K - x_0;  dw = w_K - w_0
    server:     x <- x + eta_g sum_m w_m dx_m;   w <- w + eta_g sum_m w_m dw_m

    gamma = max{sqrt(eta / (mu K)), eta}
    I:          alpha = 1 / (gamma mu),                beta = alpha + 1
    II:         alpha = 3 / (2 gamma mu) - 1/2,        beta = (2 alpha^2 - 1) / (alpha - 1)
    II-code:    as II, with beta = 2 alpha^2 / (alpha - 1), as in the authors' code

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
        variant      "I"      the paper's first; II is for a third derivative that is bounded
eta     lr           0.1      as FedAvg here; the paper tunes it from 1e-3 to 10, at most 1 / H
mu      mu           1e-3     a usual l2 term: set it to the problem's, its l2 term included
gamma   gamma        null     null: from eta, mu and K as above
alpha   alpha        null     null: from gamma and mu as above
beta    beta         null     null: from alpha as above
eta_g   server_lr    1.0      the paper averages
======  ===========  =======  ===================================================================

Evaluated is x. alpha = beta = 1 and gamma = eta is FedAvg; K = 1 is minibatch AC-SA; gamma = sqrt(eta / mu) whatever K
is the paper's naive variant, which is unstable. The theory covers equal clients.

Deviations: a schedule's factor multiplies eta, and the others follow from it; a given gamma is multiplied too. For an
F that is not strongly convex the paper adds lambda/2 |x - x0|^2 to it: here that is to be part of the task (its l2
term, which is around 0), with mu = lambda.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range, one_of

VARIANTS = ("I", "II", "II-code")


class Pair(NamedTuple):
    """The two sequences, of the server and of a client: x (the paper's w^ag) and w."""

    x: Vec
    w: Vec


@dataclass(frozen=True)
class FedAc(ServerAlgorithm):
    """Accelerated local steps; the server averages both sequences."""

    variant: str = "I"
    lr: float = 0.1
    mu: float = 1e-3
    gamma: float | None = None
    alpha: float | None = None
    beta: float | None = None
    server_lr: float = 1.0

    coordinatewise: ClassVar[bool] = True
    equal_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ConfigError("algorithm.variant", self.variant, one_of(VARIANTS, str(self.variant)))
        for name in ("lr", "mu", "server_lr"):
            in_range(f"algorithm.{name}", getattr(self, name), above=0)
        if self.gamma is not None:
            in_range("algorithm.gamma", self.gamma, above=0)
        if self.alpha is not None:
            in_range("algorithm.alpha", self.alpha, least=1)
        if self.beta is not None:
            in_range("algorithm.beta", self.beta, least=1)
        largest, key = (self.lr, "lr") if self.gamma is None else (self.gamma, "gamma")
        if self.alpha is None and largest * self.mu >= 1:
            raise ConfigError("algorithm.mu", self.mu, f"a number > 0 and < 1 / algorithm.{key} = {1 / largest:g}",
                              f"alpha would be at most 1; lower {key}, or give alpha.")
        if self.alpha == 1 and self.beta is None and self.variant != "I":
            raise ConfigError("algorithm.alpha", self.alpha, f"a number > 1 with algorithm.variant={self.variant}",
                              "It divides by alpha - 1; give beta too.")

    def parameters(self, eta: float, factor: float, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gamma, alpha and beta for a step size and a number of steps."""
        gamma = ((eta / self.mu / K).sqrt().clamp_min(eta) if self.gamma is None
                 else torch.full_like(K, self.gamma * factor))
        if self.alpha is not None:
            alpha = torch.full_like(K, self.alpha)
        else:
            alpha = 1 / (gamma * self.mu) if self.variant == "I" else 1.5 / (gamma * self.mu) - 0.5
        if self.beta is not None:
            return gamma, alpha, torch.full_like(K, self.beta)
        if self.variant == "I":
            return gamma, alpha, alpha + 1
        return gamma, alpha, (2 * alpha.square() - float(self.variant == "II")) / (alpha - 1)

    def server_init(self, x0: Vec) -> Pair:
        return Pair(x0, x0)

    def broadcast(self, s: Pair) -> Msg:
        return {"x": s.x, "w": s.w}

    def local_init(self, b: Msg, c: Tree) -> Pair:
        return Pair(b["x"].clone(), b["w"].clone())

    def local_step(self, y: Pair, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Pair:
        eta = self.lr * info.lr_factor
        gamma, alpha, beta = self.parameters(eta, info.lr_factor, torch.as_tensor(info.steps).to(y.x))
        md = y.w / beta + (1 - 1 / beta) * y.x
        g = oracle.grad(md)
        w = y.w.mul_(1 - 1 / alpha).add_(md / alpha).sub_(gamma * g)
        return Pair(md.sub_(g, alpha=eta), w)

    def local_finish(self, y: Pair, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.x.sub_(b["x"]), "dw": y.w.sub_(b["w"])}, c

    def server_update(self, s: Pair, mean: Msg, info: RoundInfo) -> Pair:
        step = self.server_lr * info.lr_factor
        return Pair(s.x + step * mean["dx"], s.w + step * mean["dw"])
