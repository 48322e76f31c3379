"""FedYogi: FedAdam with a second moment that moves by a bounded amount.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan,
"Adaptive Federated Optimization", ICLR 2021, Algorithm 2 (FedYogi); the server's
rule is that of M. Zaheer, S. J. Reddi, D. Sachan, S. Kale, S. Kumar, "Adaptive Methods for Nonconvex Optimization",
NeurIPS 2018.

    client m:   y_0 = x;  y_{k+1} = y_k - eta_l g_m(y_k);  Delta_m = y_K - x
    server:     Delta = sum_m w_m Delta_m
                m <- beta_1 m + (1 - beta_1) Delta
                v <- v - (1 - beta_2) Delta^2 sign(v - Delta^2)
                x <- x + eta m / (sqrt(v) + tau)

The symbols, fields and defaults are those of FedAdam; eta = 0.01 is also where Flower starts.

Deviations: none; in particular no bias correction, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contracts import Vec
from .fedadam import FedAdam


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """Local SGD on each client, Yogi on the server."""

    coordinatewise: ClassVar[bool] = True

    def second_moment(self, v: Vec, delta: Vec) -> Vec:
        square = delta.square()
        return v - (1 - self.beta2) * square * (v - square).sign()
