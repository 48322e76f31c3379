"""FedSN: stochastic Newton steps within a trust region, whose multiplier is searched for round by round.

B. Bullins, K. K. Patel, O. Shamir, N. Srebro, B. Woodworth, "A Stochastic Newton Algorithm for Distributed Convex
Optimization", NeurIPS 2021.

A main step solves  min_{|D| <= r} 1/2 D' hess F(x) D + grad F(x)' D  by its multiplier: in each round the clients run

    client m:   D_0 = 0;  D_{k+1} = D_k - eta (grad f(x; z_k) + hess f(x; z_k) D_k + lambda D_k),  k = 0..K-1
                send D_K, or the mean over the last half of the steps, and the value F_m(x)
    server:     D = sum_m w_m D_m;  F = sum_m w_m F_m(x)
                x is a trial, and F > F(x_kept):  x <- x_kept;  r <- r / 2;  lambda <- 0
                else, if |D| <= r:                x_kept <- x;  x <- x + D, a trial;  lambda <- 0
                else:                             lambda <- lambda_0, or growth times lambda;  x stays

so that the smallest lambda of {0, lambda_0, growth lambda_0, ...} with |D| <= r is taken. A step is tried by working
at x + D: where the value there is no larger, the round is a first probe of the next step already, and where it is, it
is lost. The model is x_kept: a step counts once its value is known.

========  ===========  =======  ===================================================================
symbol    field        default  where the default comes from
========  ===========  =======  ===================================================================
eta       lr           0.1      as FedSN-Lite here
r         radius       1.0      the theory: 1 / alpha, alpha the constant of quasi-self-concordance (1 for a
                                logistic loss of features of norm 1)
lambda_0  multiplier   0.01     the geometric grid's first entry; a small part of the smoothness
          growth       4.0      its ratio: few probes, each multiplier within a factor 4 of the smallest one
beta      server_lr    1.0      as FedSN-Lite here: beta D is added, |D| is what r bounds
          tail         false    as FedSN-Lite here
========  ===========  =======  ===================================================================

Deviations: the paper's search, of a number of rounds that is fixed in advance, is this grid; the check of the value
is added, for F that is not as the theory assumes. F_m(x) is the client's whole objective, at the cost of a pass over
its data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, StepInfo, Tree, Vec
from ..errors import in_range
from ..vectors import norm
from .fedsn_lite import FedSNLite


class State(NamedTuple):
    """Where clients work, the last accepted model and its value, the multiplier, the radius, and: is x a trial?"""

    x: Vec
    kept: Vec
    value: Vec
    multiplier: Vec
    radius: Vec
    trial: Vec


class Local(NamedTuple):
    """What FedSN-Lite works on, and F_m(x) [..., 1] (0 before the first step)."""

    y: Tree
    value: Vec


@dataclass(frozen=True)
class FedSN(FedSNLite):
    """Local SGD on the regularised second-order model; the server searches the multiplier."""

    radius: float = 1.0
    multiplier: float = 0.01
    growth: float = 4.0

    coordinatewise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range("algorithm.radius", self.radius, above=0)
        in_range("algorithm.multiplier", self.multiplier, above=0)
        in_range("algorithm.growth", self.growth, above=1)

    def server_init(self, x0: Vec) -> State:
        zero = x0.new_zeros(1)
        return State(x0, x0.clone(), zero + torch.inf, zero, zero + self.radius, zero.clone())

    def broadcast(self, s: State) -> Msg:
        return {"x": s.x, "multiplier": s.multiplier}

    def local_init(self, b: Msg, c: Tree) -> Local:
        return Local(super().local_init(b, c), torch.zeros_like(b["multiplier"]))

    def newton_step(self, y: Vec, b: Msg, oracle: Oracle, info: StepInfo) -> Vec:
        pull = (y - b["x"]) * b["multiplier"]
        return super().newton_step(y, b, oracle, info).sub_(pull, alpha=self.lr * info.lr_factor)

    def local_step(self, y: Local, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Local:
        value = oracle.full_value(b["x"]).clone() if info.k == 0 else y.value
        return Local(super().local_step(y.y, b, c, oracle, info), value)

    def local_finish(self, y: Local, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        msg, c = super().local_finish(y.y, b, c, info)
        return {**msg, "value": y.value}, c

    def iterate(self, y: Local) -> Vec:
        return super().iterate(y.y)

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:     # type: ignore[override]
        d, value, zero = mean["dx"], mean["value"], torch.zeros_like(s.trial)
        if s.trial > 0 and not value <= s.value:
            return s._replace(x=s.kept.clone(), multiplier=zero, radius=s.radius / 2, trial=zero.clone())
        s = s._replace(kept=s.x.clone(), value=value.clone())
        if norm(d) <= s.radius:
            return s._replace(x=s.x + self.server_lr * info.lr_factor * d, multiplier=zero, trial=zero + 1)
        larger = torch.where(s.multiplier > 0, self.growth * s.multiplier, zero + self.multiplier)
        return s._replace(multiplier=larger, trial=zero)

    def model(self, s: State) -> Vec:
        return s.kept

    def metrics(self, s: State) -> dict[str, float]:
        return {"multiplier": float(s.multiplier), "radius": float(s.radius)}
