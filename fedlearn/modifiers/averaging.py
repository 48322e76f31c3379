"""Output averaging: the model that is evaluated and saved is an average of iterates, not the last one.

Combines with every algorithm with a server, and leaves its iterates as they are.

    over="rounds":  x_bar_R = sum_r w_r x_r / sum_r w_r, of the server's models after each round
    over="steps":   x_bar = sum w_t y_{m,r,k} / sum w_t, over clients m (with their weights), rounds and local
                    steps k = 1..K; each client sends the average of its own: d more floats up, and one

``over="steps"`` with weights 1 is Polyak-Ruppert averaging, the output of the theory of Local SGD for convex
objectives and of A. Dieuleveut, K. K. Patel, "Communication trade-offs for Local-SGD with large step size",
NeurIPS 2019; in one single round it is the average of the machines' averages of A. Godichon-Baggioni, S. Saadane,
"On the rates of convergence of Parallelized Averaged Stochastic Gradient Algorithms", Statistics 2020.
Weights w_t = (t + 1)^power, t counting rounds or local steps; nothing of the first ``start`` rounds counts (tail
averaging). Until something counts, the model is the last iterate. Where clients take different numbers of steps in a
round, the average of each client's steps counts with the client's weight, as in the average of averages; a power
above 0 then has no common t, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..contracts import Modifier, Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range
from .wrapped import Around, OnServer

OVER = ("rounds", "steps")


class Mean(NamedTuple):
    """An average [..., P] and the sum of the weights in it, float64 [..., 1]."""

    x: Vec
    weight: Vec


@dataclass(frozen=True)
class Averaging(Modifier):
    """Evaluate and save an average over rounds or local steps.

    Raises:
        ConfigError: if a field is out of range.
    """

    over: str = "steps"
    power: float = 0.0
    start: int = 0

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise ConfigError("over", self.over, " or ".join(OVER))
        in_range("power", self.power, least=0)
        in_range("start", self.start, least=0)

    def around(self, algorithm: ServerAlgorithm) -> ServerAlgorithm:
        if self.over == "rounds":
            return OverRounds(algorithm, self.power, self.start)
        if algorithm.individual:
            raise ConfigError("over", "steps", f"rounds with algorithm {type(algorithm).__name__}",
                              "Its server sees every upload by itself.")
        return OverSteps(algorithm, self.power, self.start)


@dataclass(frozen=True)
class OverRounds(OnServer):
    """Averages the server's models."""

    power: float
    start: int

    def server_init(self, x0: Vec) -> Around:
        return Around(self.inner.server_init(x0), Mean(x0.clone(), x0.new_zeros(1, dtype=torch.float64)))

    def server_update(self, s: Around, mean: Msg, info: RoundInfo) -> Around:
        inner = self.inner.server_update(s.inner, mean, info)
        weight = s.own.weight.new_full((1,), (info.round - self.start + 1) ** self.power if
                                       info.round >= self.start else 0.0)
        return Around(inner, _joined(s.own, self.inner.model(inner), weight))

    def model(self, s: Around) -> Vec:
        return s.own.x


@dataclass(frozen=True)
class OverSteps(OverRounds):
    """Averages the clients' local iterates; the local state is (inner, sum of w (y - x), sum of w)."""

    @property
    def equal_steps(self) -> bool:      # type: ignore[override]
        return self.inner.equal_steps or self.power > 0

    def local_init(self, b: Msg, c: Tree) -> Around:
        return Around(self.inner.local_init(b, c),
                      Mean(torch.zeros_like(b["x"]), torch.zeros_like(b["x"][..., :1], dtype=torch.float64)))

    def local_step(self, y: Around, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Around:
        inner = self.inner.local_step(y.inner, b, c, oracle, info)
        weight = float((info.t + 1) ** self.power) if self.power else 1.0
        y.own.x.add_(self.inner.iterate(inner) - b["x"], alpha=weight)
        y.own.weight.add_(weight)
        return Around(inner, y.own)

    def local_finish(self, y: Around, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        msg, c = self.inner.local_finish(y.inner, b, c, info)
        each = y.own.x / y.own.weight.to(y.own.x.dtype)
        return {**msg, "average": each, "average_weight": y.own.weight}, c

    def server_update(self, s: Around, mean: Msg, info: RoundInfo) -> Around:
        x = self.inner.broadcast(s.inner)["x"] + mean["average"]
        weight = mean["average_weight"] if info.round >= self.start else torch.zeros_like(s.own.weight)
        inner = self.inner.server_update(s.inner, {name: v for name, v in mean.items() if name not in OWN}, info)
        return Around(inner, _joined(s.own, x if info.round >= self.start else self.inner.model(inner), weight))

    def iterate(self, y: Around) -> Vec:
        return self.inner.iterate(y.inner)


OWN = ("average", "average_weight")


def _joined(mean: Mean, x: Vec, weight: Vec) -> Mean:
    """Return the mean with another iterate in it; while nothing has weight, it is the iterate itself."""
    total = mean.weight + weight
    share = torch.where(total > 0, weight / total.clamp_min(1e-300), torch.ones_like(total)).to(x.dtype)
    return Mean(mean.x + share * (x - mean.x), total)
