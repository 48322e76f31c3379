"""MimeLite: local steps of the server's optimiser, whose statistics stay as they are during a round.

S. P. Karimireddy, M. Jaggi, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "Breaking the Centralized
Barrier for Cross-Device Federated Learning", NeurIPS 2021 ("Mime"), Algorithm 1 with option MimeLite and the
table of its base optimisers.

    client m:   y_0 = x;  y_{k+1} = y_k - eta U(g_m(y_k), s);  dx = y_K - x;  G_m = grad F_m(x)
    server:     x <- x + eta_g sum_m w_m dx_m;   s <- V(sum_m w_m G_m, s)

    momentum:   U = (1 - beta) g + beta m;                                   V: m <- (1 - beta) G + beta m
    Adam:       U = ((1 - beta_1) g + beta_1 m) / (sqrt(v) + eps);           V: m as above,
                                                                             v <- (1 - beta_2) G^2 + beta_2 v

======  ===========  ========  ==================================================================
symbol  field        default   where the default comes from
======  ===========  ========  ==================================================================
eta     lr           0.1       as FedAvg here; with Adam it must be much smaller
eta_g   server_lr    1.0       the paper's plain averaging
        optimizer    momentum  the paper's first choice; adam is the other
beta    beta1        0.9       the paper; with momentum 0 this is FedAvg
beta_2  beta2        null      the paper's 0.99, with Adam only
eps     eps          null      the paper's 0.001, with Adam only
s       (server)               starts at 0, as in the paper: with Adam the first round's steps are long
======  ===========  ========  ==================================================================

Deviations: no bias correction in Adam, as in the paper's table; G_m at the old x goes up with dx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import ConfigError, in_range


class State(NamedTuple):
    """The server's model and the statistics of its optimiser: m, and v with Adam, by name."""

    x: Vec
    s: dict[str, Vec]


class Local(NamedTuple):
    """The iterate, and grad F_m(x) from the first step on."""

    y: Vec
    full: Tree


@dataclass(frozen=True)
class Mimicking(ServerAlgorithm):
    """What MimeLite and Mime share: the server's optimiser, as U and V."""

    lr: float = 0.1
    server_lr: float = 1.0
    optimizer: str = "momentum"
    beta1: float = 0.9
    beta2: float | None = None
    eps: float | None = None

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)
        in_range("algorithm.beta1", self.beta1, least=0, below=1)
        if self.optimizer not in ("momentum", "adam"):
            raise ConfigError("algorithm.optimizer", self.optimizer, "momentum or adam")
        if self.beta2 is not None:
            in_range("algorithm.beta2", self.beta2, least=0, below=1)
        if self.eps is not None:
            in_range("algorithm.eps", self.eps, above=0)
        for name in ("beta2", "eps"):
            if self.optimizer == "momentum" and getattr(self, name) is not None:
                raise ConfigError(f"algorithm.{name}", getattr(self, name),
                                  "null with algorithm.optimizer=momentum", "Only adam has it.")

    def statistics(self, x0: Vec) -> dict[str, Vec]:
        """Return the first s: m, and v with Adam."""
        return {name: torch.zeros_like(x0) for name in ("m", "v")[:2 if self.optimizer == "adam" else 1]}

    def step(self, g: Vec, s: Msg) -> Vec:
        """Return U(g, s)."""
        m = (1 - self.beta1) * g + self.beta1 * s["m"]
        return m / (s["v"].sqrt() + (0.001 if self.eps is None else self.eps)) if self.optimizer == "adam" else m

    def track(self, g: Vec, s: Msg) -> dict[str, Vec]:
        """Return V(g, s)."""
        moved = {"m": (1 - self.beta1) * g + self.beta1 * s["m"]}
        if self.optimizer == "adam":
            beta2 = 0.99 if self.beta2 is None else self.beta2
            moved["v"] = (1 - beta2) * g.square() + beta2 * s["v"]
        return moved


@dataclass(frozen=True)
class MimeLite(Mimicking):
    """Local steps of SGD with momentum or of Adam, with the server's momentum and second moment."""

    coordinatewise: ClassVar[bool] = True

    def server_init(self, x0: Vec) -> State:
        return State(x0, self.statistics(x0))

    def broadcast(self, s: State) -> Msg:
        return {"x": s.x, **s.s}

    def local_init(self, b: Msg, c: Tree) -> Local:
        return Local(b["x"].clone(), ())

    def local_step(self, y: Local, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Local:
        if info.k == 0:
            y = y._replace(full=oracle.full_grad(b["x"]).clone())
        y.y.sub_(self.step(oracle.grad(y.y), b), alpha=self.lr * info.lr_factor)
        return y

    def local_finish(self, y: Local, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.y.sub_(b["x"]), "g": y.full}, c

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        return State(s.x + self.server_lr * info.lr_factor * mean["dx"], self.track(mean["g"], s.s))
