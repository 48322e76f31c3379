"""FedExP: the server extrapolates, the further the less the clients agree.

D. Jhunjhunwala, S. Wang, G. Joshi, "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023,
Algorithm 1.

    client m:   y_0 = x;  y_{k+1} = y_k - eta g_m(y_k);  Delta_m = y_K - x, and |Delta_m|^2
    server:     Delta = sum_m w_m Delta_m
                eta_g = max(1, sum_m w_m |Delta_m|^2 / (2 (|Delta|^2 + eps)))
                x <- x + eta_g Delta
    evaluated:  the mean of the last two x

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here
eps     eps          0.001    the paper for CIFAR; 0.1 for EMNIST; at infinity this is FedAvg
        server_lr    1.0      the paper has none; multiplies eta_g
======  ===========  =======  ===================================================================

Deviations: a client sends the square of its norm, one float, beside the difference. eps is constant;
the authors' code multiplies it by the cohort's size and lets it shrink with the rounds. The paper
weights clients equally; other weights enter both means alike. ``server_step`` among the metrics is eta_g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import in_range
from ..vectors import dot


class State(NamedTuple):
    """The server's model, the one before it, and the last eta_g [1]."""

    x: Vec
    last: Vec
    step: Vec


@dataclass(frozen=True)
class FedExP(ServerAlgorithm):
    """Local SGD on each client, an adaptive step of at least one on the server."""

    lr: float = 0.1
    eps: float = 0.001
    server_lr: float = 1.0

    local_sgd: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.eps", self.eps, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)

    def server_init(self, x0: Vec) -> State:
        return State(x0, x0, x0.new_ones(1))

    def local_step(self, y: Vec, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Vec:
        return y.add_(oracle.grad(y), alpha=-self.lr * info.lr_factor)

    def local_finish(self, y: Vec, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        dx = y.sub_(b["x"])
        return {"dx": dx, "square": dot(dx, dx)}, c

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        dx = mean["dx"]
        step = (mean["square"] / (2 * (dot(dx, dx) + self.eps))).clamp_min(1)
        return State(s.x + self.server_lr * info.lr_factor * step * dx, s.x, step)

    def model(self, s: State) -> Vec:
        return (s.x + s.last) / 2

    def metrics(self, s: State) -> dict[str, float]:
        return {"server_step": float(s.step)}
