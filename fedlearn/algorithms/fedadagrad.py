"""FedAdagrad: the server sums the squares of all mean differences that it has seen.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan,
"Adaptive Federated Optimization", ICLR 2021, Algorithm 2 (FedAdagrad).

    client m:   y_0 = x;  y_{k+1} = y_k - eta_l g_m(y_k);  Delta_m = y_K - x
    server:     Delta = sum_m w_m Delta_m
                m <- beta_1 m + (1 - beta_1) Delta
                v <- v + Delta^2
                x <- x + eta m / (sqrt(v) + tau)

======  ===========  =======  ===================================================================
symbol  field        default  where the default comes from
======  ===========  =======  ===================================================================
eta_l   lr           0.1      as FedAvg here
eta     server_lr    0.03     about 10^-1.5, where the authors advise to start for Adagrad
beta_1  beta1        0        the paper's choice for FedAdagrad
tau     tau          1e-3     the paper; it dominates the effective step size, tune it
v_-1    v0           1e-6     the paper asks for v_-1 >= tau^2; this is tau^2 at the default tau
======  ===========  =======  ===================================================================

Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contracts import Vec
from .fedadam import AdaptiveServer


@dataclass(frozen=True)
class FedAdagrad(AdaptiveServer):
    """Local SGD on each client, Adagrad on the server."""

    server_lr: float = 0.03
    beta1: float = 0.0

    coordinatewise: ClassVar[bool] = True

    def second_moment(self, v: Vec, delta: Vec) -> Vec:
        return v + delta.square()
