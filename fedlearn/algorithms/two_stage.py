"""Two stages: Local SGD while it is quick, then minibatch SGD, whose fixed point is the optimum.

K. K. Patel, M. Glasgow, A. Zindari, L. Wang, S. U. Stich, Z. Cheng, N. Joshi, N. Srebro, "The Limits and Potentials of
Local SGD for Distributed Heterogeneous Learning with Intermittent Communication", COLT 2024, Appendix E.6: on strongly
convex quadratics Local GD with a fixed step ends at a biased point, so that the last rounds are those of minibatch GD.

    stage 1:    client m: y_0 = x;  y_{k+1} = y_k - eta g_m(y_k);  dx = y_K - x       (FedAvg)
    stage 2:    client m: dx = -(eta_2 / K) sum_k g_m(x; z_k)                          (minibatch SGD)
    server:     x <- x + eta_g sum_m w_m dx

Round r (from 0) of R belongs to stage 1 where r < n, once in stage 2 it stays there:

    switch="round"      n = ``at``
    switch="fraction"   n = ``at`` R
    switch="drift"      n is the first round after one with |sum w dx| < ``at`` (sum_m w_m |dx_m - sum w dx|^2)^(1/2):
                        the model moves by less than ``at`` times the clients' distance from one another

======  ============  ==========  ===================================================================
symbol  field         default     where the default comes from
======  ============  ==========  ===================================================================
eta     lr            0.1         as FedAvg here; the paper's analysis takes 1 / (2 H)
eta_2   minibatch_lr  0.5         as minibatch SGD its best value is often larger than eta, up to about 1 / H
        switch        "fraction"  needs no knowledge of the problem
        at            0.5         half of the rounds; with switch="drift", 2 is a sensible choice
eta_g   server_lr     1.0         as FedAvg
======  ============  ==========  ===================================================================

The server broadcasts the stage in one more float; with switch="drift" clients send |dx_m|^2 in one more.

Deviations: the paper gives n in terms of the problem's constants, ln(H mu B / (zeta_* tau)) kappa / K rounds:
compute it and give it as ``at``. The drift of the rule is the distance between clients, from what they send, and not
the distance of their mean from where steps on the mean objective lead, which nobody knows in a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range, one_of
from ..vectors import dot

SWITCHES = ("round", "fraction", "drift")


class State(NamedTuple):
    """The model, and 1 in the first stage, 0 in the second, [1]."""

    x: Vec
    local: Vec


@dataclass(frozen=True)
class TwoStage(ServerAlgorithm):
    """Local SGD first, minibatch SGD later."""

    lr: float = 0.1
    minibatch_lr: float = 0.5
    switch: str = "fraction"
    at: float = 0.5
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "minibatch_lr", "server_lr"):
            in_range(f"algorithm.{name}", getattr(self, name), above=0)
        if self.switch not in SWITCHES:
            raise ConfigError("algorithm.switch", self.switch, one_of(SWITCHES, str(self.switch)))
        in_range("algorithm.at", self.at, least=0, most=1 if self.switch == "fraction" else None)

    @property
    def horizon(self) -> bool:      # type: ignore[override]
        return self.switch == "fraction"

    def server_init(self, x0: Vec) -> State:
        return State(x0, torch.full_like(x0[:1], float(self.at > 0 or self.switch == "drift")))

    def broadcast(self, s: State) -> Msg:
        return {"x": s.x, "local": s.local}

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        local = b["local"] > 0
        g = oracle.grad(torch.where(local, y, b["x"]))
        second = self.minibatch_lr / torch.as_tensor(info.steps).to(y)
        step = torch.where(local, torch.full_like(b["local"], self.lr), second)
        return y.sub_(step * info.lr_factor * g)

    def local_finish(self, y: Vec, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        dx = y.sub_(b["x"])
        return {"dx": dx} | ({"square": dot(dx, dx)} if self.switch == "drift" else {}), c

    def goes_on(self, mean: Msg, info: RoundInfo) -> Tensor | bool:
        """Return whether the first stage goes on, were it so far."""
        if self.switch != "drift":
            return info.round + 1 < self.at * (info.rounds if self.switch == "fraction" else 1)
        moved = dot(mean["dx"], mean["dx"])
        apart = (mean["square"] - moved).clamp_min(0)   # the clients' mean squared distance from their mean
        return moved >= self.at**2 * apart

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        x = s.x + self.server_lr * info.lr_factor * mean["dx"]
        return State(x, s.local * self.goes_on(mean, info))

    def metrics(self, s: State) -> dict[str, float]:
        return {"stage": 2.0 - float(s.local)}
