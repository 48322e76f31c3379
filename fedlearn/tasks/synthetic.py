"""What the synthetic federated problems share: sizes of clients and the measures of their difference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..data.partitions.allot import apportion, keep_least
from ..errors import ConfigError, in_range


def check_sizes(samples_per_client: int, size_exponent: float) -> None:
    """Check the two dials of the clients' sizes.

    Raises:
        ConfigError: naming the key.
    """
    in_range("task.samples_per_client", samples_per_client, least=1)
    in_range("task.size_exponent", size_exponent, least=0, most=10)


def client_sizes(clients: int, samples_per_client: int, size_exponent: float, rng: np.random.Generator
                 ) -> np.ndarray:
    """Return the samples of each client, int64 [clients], with the mean ``samples_per_client``.

    The client of rank r (drawn at random) has a number in proportion to r^(-size_exponent), at
    least 1; exponent 0 gives equal sizes.
    """
    ranks = 1.0 + rng.permutation(clients)
    sizes = apportion(ranks**-size_exponent, clients * samples_per_client)
    return keep_least(sizes[:, None], 1)[:, 0]


def require_two_clients(clients: int, **dials: float) -> None:
    """Refuse dials of heterogeneity above 0 for a single client.

    Raises:
        ConfigError: naming the dial.
    """
    for name, value in dials.items():
        if clients < 2 and value > 0:
            raise ConfigError(f"task.{name}", value, f"0 with clients={clients}",
                              "One client differs from nobody; ask for clients=2 or more.")


def shares(sizes: np.ndarray) -> Tensor:
    """Return p_m = n_m / n, float64 [clients]: the weights of F = sum_m p_m F_m."""
    return torch.from_numpy(np.asarray(sizes) / np.sum(sizes))


def dissimilarity(hessians: Tensor, gradients: Tensor, p: Tensor) -> dict[str, float]:
    """Return how clients differ, from their Hessians [clients, P, P] and gradients [clients, P] at x*.

    ``tau`` is the largest spectral norm of H_m - H_n over pairs, ``tau_mean`` that of H_m - sum p H;
    ``zeta_star`` is (sum_m p_m |grad F_m(x*)|^2)^(1/2).
    """
    pairs = [_largest(hessians[m] - hessians[m + 1:]) for m in range(len(hessians) - 1)]
    mean = torch.einsum("m,mij->ij", p, hessians)
    return {"tau": max(pairs, default=0.0), "tau_mean": _largest(hessians - mean),
            "zeta_star": float((p @ gradients.square().sum(1)).sqrt())}


def extremes(hessian: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest eigenvalue over symmetric matrices [..., P, P]."""
    values = torch.linalg.eigvalsh(hessian)
    return float(values.min()), float(values.max())


def _largest(symmetric: Tensor) -> float:
    return float(torch.linalg.eigvalsh(symmetric).abs().max())
