"""Local AC-SA: AC-SA on every client with one step counter over all rounds; both sequences are averaged.

B. Woodworth, K. K. Patel, S. U. Stich, Z. Dai, B. Bullins, B. McMahan, O. Shamir, N. Srebro, "Is Local SGD Better than
Minibatch SGD?", ICML 2020, Section 3: a method whose updates are linear in iterates and gradients, run locally and
averaged in all its sequences, does on quadratics what K R steps with 1/M of the variance do, whatever K. AC-SA is that
of S. Ghadimi, G. Lan, "Optimal stochastic approximation algorithms for strongly convex stochastic composite
optimization I", SIAM J. Optimization 2012.

    client m, at its step t = 1, 2, ... counted over all rounds:
                alpha_t = 2 / (t + 1),  gamma_t = eta t / 2
                g = g_m(alpha_t y + (1 - alpha_t) x)
                y <- y - gamma_t g;    x <- alpha_t y + (1 - alpha_t) x
    server:     x <- x + eta_g sum_m w_m dx_m;   y <- y + eta_g sum_m w_m dy_m

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      as FedAvg here; 1 / Gamma, see ``minibatch_acsa.step_size``
eta_g   server_lr    1.0      the paper averages
======  ===========  =======  ===================================================================

Evaluated is x. With sampling=one this is AC-SA on a single machine. On other than quadratics it is a heuristic.

Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec
from ..errors import in_range


class Pair(NamedTuple):
    """The two sequences, of the server and of a client."""

    x: Vec
    y: Vec


@dataclass(frozen=True)
class LocalACSA(ServerAlgorithm):
    """Accelerated local steps whose counter never starts anew."""

    lr: float = 0.1
    server_lr: float = 1.0

    coordinatewise: ClassVar[bool] = True
    equal_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)

    def server_init(self, x0: Vec) -> Pair:
        return Pair(x0, x0)

    def broadcast(self, s: Pair) -> Msg:
        return {"x": s.x, "y": s.y}

    def local_init(self, b: Msg, c: Tree) -> Pair:
        return Pair(b["x"].clone(), b["y"].clone())

    def local_step(self, y: Pair, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Pair:
        t = info.t + 1
        alpha, gamma = 2 / (t + 1), t / 2 * self.lr * info.lr_factor
        y.x.mul_(1 - alpha)     # the part that x^md and the next x share
        g = oracle.grad(y.x.add(y.y, alpha=alpha))
        y.y.add_(g, alpha=-gamma)
        y.x.add_(y.y, alpha=alpha)
        return y

    def local_finish(self, y: Pair, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": y.x.sub_(b["x"]), "dy": y.y.sub_(b["y"])}, c

    def server_update(self, s: Pair, mean: Msg, info: RoundInfo) -> Pair:
        step = self.server_lr * info.lr_factor
        return Pair(s.x + step * mean["dx"], s.y + step * mean["dy"])
