"""FedDyn: a linear and a quadratic term make the clients' optima agree with that of the whole.

D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama, "Federated Learning Based on
Dynamic Regularization", ICLR 2021, Algorithm 1.

    client m:   y ~ argmin F_m(y) - <l_m, y> + alpha/2 |y - x|^2, by K steps from y_0 = x:
                    y_{k+1} = y_k - eta (g_m(y_k) - l_m + alpha (y_k - x))
                dx = y_K - x;  l_m <- l_m - alpha dx
    server:     h <- h - alpha (abs(S) / N) mean dx
                x <- x + mean dx - h / alpha      (the mean of the y_K, less h / alpha)

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta     lr           0.1      the authors' code
alpha   alpha        0.01     the authors' code, for CIFAR-10; the paper tunes over 0.001 to 0.1
        server_lr    1.0      the paper has none; multiplies the server's whole step
l_m     (client state)        starts at 0, as h, in the paper
======  ===========  =======  ===================================================================

Weighting: as in the paper the mean is the plain one, whatever the weighting, and the objective is
(1/N) sum_m F_m: h is the plain mean of the l_m over all N clients at every round.

Deviations: the authors' code divides alpha by a client's share of the samples, and clips gradients to norm 10:
here alpha is the same for all clients, and clipping is a matter of the pipeline. What is evaluated is the
server's x; the code reports the mean of the y_K as well. l_m drifts where a client rarely takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from ..contracts import Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Vec
from ..errors import in_range


class State(NamedTuple):
    """The server's model, and h, the mean of the clients' l_m."""

    x: Vec
    h: Vec


@dataclass(frozen=True)
class FedDyn(ServerAlgorithm):
    """Local SGD on a dynamically regularised objective; each client keeps a gradient [P]."""

    lr: float = 0.1
    alpha: float = 0.01
    server_lr: float = 1.0

    unweighted: ClassVar[frozenset[str]] = frozenset({"dx"})
    coordinatewise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        in_range("algorithm.lr", self.lr, above=0)
        in_range("algorithm.alpha", self.alpha, above=0)
        in_range("algorithm.server_lr", self.server_lr, above=0)

    def server_init(self, x0: Vec) -> State:
        return State(x0, torch.zeros_like(x0))

    def client_init(self, x0: Vec) -> Vec:
        return torch.zeros_like(x0)

    def local_step(self, y: Vec, b: Msg, c: Vec, oracle: Oracle, info: StepInfo) -> Vec:
        eta = self.lr * info.lr_factor
        g = oracle.grad(y)
        # lerp_: y <- y + eta alpha (x - y), without a temporary.
        return y.lerp_(b["x"], eta * self.alpha).add_(g, alpha=-eta).add_(c, alpha=eta)

    def local_finish(self, y: Vec, b: Msg, c: Vec, info: StepInfo) -> tuple[Msg, Vec]:
        dx = y.sub_(b["x"])
        return {"dx": dx}, c - self.alpha * dx

    def server_update(self, s: State, mean: Msg, info: RoundInfo) -> State:
        h = s.h - self.alpha * info.participation * mean["dx"]
        return State(s.x + self.server_lr * info.lr_factor * (mean["dx"] - h / self.alpha), h)
