"""Mime: local steps that mimic the server's optimiser on the whole objective.

S. P. Karimireddy, M. Jaggi, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "Breaking the Centralized
Barrier for Cross-Device Federated Learning", NeurIPS 2021 ("Mime"), Algorithm 1 with option Mime.

    first:      c = sum_m w_m grad F_m(x)      (of this round's cohort: an exchange of its own)
    client m:   y_0 = x;  y_{k+1} = y_k - eta U(g_m(y_k) - g_m(x) + c, s);  dx = y_K - x
                both g_m of one mini-batch
    server:     x <- x + eta_g sum_m w_m dx_m;   s <- V(c, s)

U, V, s, the symbols, fields and defaults are those of MimeLite. A round sends x down and the gradients
up, then c and s down and dx up; a step costs two gradients.

Deviations: none but those of MimeLite; c is of the present round, as in the paper, at the price of the
second exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from .mimelite import Mimicking


class State(NamedTuple):
    """The server's model, the statistics of its optimiser, and c."""

    x: Vec
    s: dict[str, Vec]
    c: Vec


@dataclass(frozen=True)
class Gradients(ServerAlgorithm):
    """The first exchange: the mean gradient of the cohort becomes c."""

    coordinatewise: ClassVar[bool] = True

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.copy_(oracle.full_grad(b["x"]))

    def local_finish(self, y: Vec, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"g": y}, c

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        return s._replace(c=mean["g"])


@dataclass(frozen=True)
class Mime(Mimicking):
    """Local steps with variance reduction, and with the server's momentum and second moment."""

    coordinatewise: ClassVar[bool] = True

    @property
    def prelude(self) -> ServerAlgorithm:
        return Gradients()

    def server_init(self, x0: Vec) -> State:
        return State(x0, self.statistics(x0), torch.zeros_like(x0))

    def broadcast(self, s: State) -> Msg:
        return {"x": s.x, **s.s, "c": s.c}

    def local_init(self, b: Msg, c: Tree) -> Vec:
        return b["x"].clone()

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        g = oracle.grad(y).clone()
        g.sub_(oracle.grad(b["x"])).add_(b["c"])
        return y.sub_(self.step(g, b), alpha=self.lr * info.lr_factor)

    def local_finish(self, y: Vec, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.sub_(b["x"])}, c

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        return State(s.x + self.server_lr * info.lr_factor * mean["dx"], self.track(s.c, s.s), s.c)
