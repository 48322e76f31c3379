"""SCAFFOLD: control variates that remove the clients' drift.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "SCAFFOLD: Stochastic
Controlled Averaging for Federated Learning", ICML 2020, Algorithm 1.

    client m:   y_0 = x;  y_{k+1} = y_k - eta (g_m(y_k) - c_m + c),  k = 0..K-1
                c_m^+ = grad F_m(x)                        (option I: the whole local data)
                      = c_m - c + (x - y_K) / (K eta)      (option II)
                dx = y_K - x;  dc = c_m^+ - c_m;  c_m <- c_m^+
    server:     x <- x + eta_g mean dx;   c <- c + (abs(S) / N) mean dc

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here
eta_g   server_lr    1.0      the paper's experiments
        option       "II"     the paper's experiments; option I costs a pass over the client's data
c_m     (client state)        starts at 0, as in the paper's experiments
======  ===========  =======  ===================================================================

Weighting: c is the plain mean of the c_m over all N clients, at every round, also with partial
participation and clients of unequal size: dc is averaged plainly whatever the weighting. The
objective is therefore the paper's, (1/N) sum_m F_m: at its optimum c = 0 and every local step is
zero, so that other weights of dx change the path and not the limit. To minimise the average over
samples, sum_m p_m F_m, use another algorithm or clients of equal size.

Deviations: where a schedule changes eta within a round, K eta is the sum of the step sizes taken.
Stale c_m at low participation make large eta_g unstable, as the paper says too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range


class State(NamedTuple):
    """The server's model and control variate."""

    x: Vec
    c: Vec


class Local(NamedTuple):
    """The iterate, the drift c_m - c, and grad F_m(x) or ()."""

    y: Vec
    drift: Vec
    full: Tree


@dataclass(frozen=True)
class Scaffold(ServerAlgorithm):
    """Local SGD with drift correction; each client keeps a control variate [P]."""

    lr: float = 0.1
    server_lr: float = 1.0
    option: str = "II"

    unweighted: ClassVar[frozenset[str]] = frozenset({"dc"})
    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        if self.option not in ("I", "II"):
            raise ConfigError("algorithm.option", self.option, "I or II")

    def server_init(self, x0: Vec) -> State:
        return State(x0, torch.zeros_like(x0))

    def client_init(self, x0: Vec) -> Vec:
        return torch.zeros_like(x0)

    def broadcast(self, s: State) -> Msg:
        return {"x": s.x, "c": s.c}

    def local_init(self, b: Msg, c: Vec) -> Local:
        return Local(b["x"].clone(), c - b["c"], ())

    def local_step(self, y: Local, b: Msg, c: Vec, oracle: Oracle, info: StepInfo) -> Local:
        if self.option == "I" and info.k == 0:
            y = y._replace(full=oracle.full_grad(b["x"]).clone())
        eta = self.lr * info.lr_factor
        y.y.add_(oracle.grad(y.y), alpha=-eta).add_(y.drift, alpha=eta)
        return y

    def local_finish(self, y: Local, b: Msg, c: Vec, info: StepInfo) -> tuple[Msg, Vec]:
        dx = y.y.sub_(b["x"])
        c_new = y.full if self.option == "I" else y.drift.add_(dx, alpha=-1 / (self.lr * info.lr_total))
        return {"dx": dx, "dc": c_new - c}, c_new

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        x = s.x + self.server_lr * info.lr_factor * mean["dx"]
        return State(x, s.c + info.participation * mean["dc"])
