"""Quadratic clients: every constant of the theory is a dial, and everything has a closed form.

    F(x) = sum_m p_m F_m(x),   F_m(x) = 1/2 (x - o_m)' A_m (x - o_m),   p_m = n_m / n
    stochastic gradient of a mini-batch of b samples:  A_m (x - o_m) + N(0, sigma^2 / (P b) I)

The weights p_m are uniform where the clients' sizes are equal. Samples are nominal: they set the
number of local steps, the weights and the noise, which the draws of a client's round carry. A full
batch, too, is noisy: its n_m samples stand for a population.

The constants are those of Patel et al., "The Limits and Potentials of Local SGD", COLT 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..contracts import ClientOracle, LocalPlan, Vec
from ..errors import ConfigError, DataError, in_range, one_of
from ..oracles.closed_form import QuadraticOracle
from ..seeds import generator
from .synthetic import check_sizes, client_sizes, dissimilarity, extremes, require_two_clients, shares

ORACLES = ("auto", "closed_form")


class QuadraticTask:
    """Clients with given matrices ``A`` [clients, P, P] and ``optima`` [clients, P], started at ``x0`` [P].

    The dtype of ``x0`` is that of the run. ``sigma`` is the noise of one sample's gradient, ``sizes``
    int64 [clients] the nominal samples (default: 1 each). Single matrices may be singular.

    Raises:
        ConfigError: if shapes do not fit, or a matrix is not symmetric positive semi-definite.
    """

    def __init__(self, A: Tensor, optima: Tensor, x0: Vec, sigma: float = 0.0,
                 sizes: Sequence[int] | np.ndarray | None = None) -> None:
        self.A, self.optima, self.x0 = A.to(x0.dtype), optima.to(x0.dtype), x0.clone()
        self.sigma = float(sigma)
        self.sizes: np.ndarray = np.asarray(np.ones(len(A)) if sizes is None else sizes).astype(np.int64)
        clients, dimension = len(self.sizes), x0.numel()
        in_range("sigma", self.sigma, least=0)
        shapes = {"A": (A, (clients, dimension, dimension)), "optima": (optima, (clients, dimension))}
        for key, (found, shape) in shapes.items():
            if tuple(found.shape) != shape:
                raise ConfigError(key, tuple(found.shape),
                                  f"the shape {shape}, for {clients} client(s) and x0 of {dimension}")
        if self.sizes.min() < 1:
            raise DataError(f"client {self.sizes.argmin()}: found {self.sizes.min()} samples; allowed: at least "
                            "1; leave it out.")
        self.p = shares(self.sizes)
        lowest = torch.linalg.eigvalsh(self._A).amin(1)
        scale = self._A.abs().amax((1, 2))
        skew = (self._A - self._A.mT).abs().amax((1, 2))
        slack = 100 * dimension * torch.finfo(x0.dtype).eps * scale
        for m in torch.nonzero((lowest < -slack) | (skew > slack)).flatten().tolist():
            raise ConfigError("A", f"a matrix of client {m} with the smallest eigenvalue {lowest[m]:.3g} and "
                              f"A - A' up to {skew[m]:.3g}", "symmetric positive semi-definite matrices")

    @property
    def _A(self) -> Tensor:
        return self.A.double()

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian of F, float64 [P, P]."""
        return torch.einsum("m,mij->ij", self.p, self._A)

    @cached_property
    def optimum(self) -> Vec:
        """The minimiser x* of F, float64 [P]; the one nearest to x0 if there are several."""
        x0 = self.x0.double()
        gradient = self.p @ self._gradients(x0)
        if extremes(self.hessian)[0] > 1e-12 * extremes(self.hessian)[1]:
            return x0 - torch.linalg.solve(self.hessian, gradient)
        return x0 - torch.linalg.pinv(self.hessian, hermitian=True) @ gradient

    @cached_property
    def minimum(self) -> float:
        """F(x*)."""
        away = self.optimum - self.optima.double()
        return float(self.p @ (self._gradients(self.optimum) * away).sum(1)) / 2

    def constants(self) -> dict[str, float]:
        """Return the constants of the theory, exact up to rounding.

        ``H``: smoothness of every F_m; ``mu``: strong convexity of F; ``tau``: largest spectral norm
        of A_m - A_n, ``tau_mean``: of A_m - sum p A; ``zeta_star``: (sum p |grad F_m(x*)|^2)^(1/2);
        ``phi_star``: (sum p |o_m - x*|^2)^(1/2); ``sigma``: noise of one sample; ``B``: |x0 - x*|;
        ``M``: clients.
        """
        away = self.optimum - self.optima.double()
        return {"H": extremes(self._A)[1], "mu": max(extremes(self.hessian)[0], 0.0),
                **dissimilarity(self._A, self._gradients(self.optimum), self.p),
                "phi_star": float((self.p @ away.square().sum(1)).sqrt()), "sigma": self.sigma,
                "B": float((self.x0.double() - self.optimum).norm()), "M": len(self.sizes)}

    def initial(self, seed: int) -> Vec:
        """Return x0 [P]."""
        return self.x0.clone()

    def oracle(self, kind: str = "auto") -> ClientOracle:
        """Return a closed-form oracle; it stacks."""
        if kind not in ORACLES:
            raise ConfigError("oracle", kind, one_of(ORACLES, kind), "Quadratics have no network.")
        return QuadraticOracle(self.A, self.optima)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Tensor | None]:
        """Return the gradient noise [P] of each of the K mini-batches; None each where sigma is 0."""
        n = int(self.sizes[client])
        steps, full = local.steps_for(n), local.batch_for(n)
        if self.sigma == 0:
            return [None] * steps
        batch = np.full(steps, full)
        if n % full:  # every pass over the samples ends with a smaller batch
            batch[n // full::n // full + 1] = n % full
        scale = self.sigma / np.sqrt(batch * self.x0.numel())
        noise = rng.standard_normal((steps, self.x0.numel())) * scale[:, None]
        return list(torch.from_numpy(noise).to(self.x0.dtype))

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return ``loss`` F(x), ``suboptimality`` F(x) - F* and ``distance`` |x - x*|, in float64."""
        away = x.double() - self.optimum
        above = float(away @ self.hessian @ away) / 2  # without the cancellation of F(x) - F*
        return {"loss": self.minimum + above, "suboptimality": above, "distance": float(away.norm())}

    def _gradients(self, x: Vec) -> Tensor:
        """Return grad F_m(x) of all clients, float64 [clients, P]."""
        return torch.einsum("mij,mj->mi", self._A, x - self.optima.double())


@dataclass(frozen=True)
class Quadratic:
    """Random quadratics that have exactly the constants that are asked for.

    Every F_m is ``H``-smooth and ``mu``-strongly convex, and so is F. Their Hessians share a
    geometric spectrum from mu to H - tau and an eigenvector for mu; client m adds tau times a random
    projection, clients 2i and 2i + 1 complementary ones, so that the largest pairwise distance is
    ``tau``. The optima are spread so that the gradients at x* have the root mean square
    ``zeta_star``; x0 = 0 lies at distance ``B`` from x*; ``sigma`` is the noise of one sample.

    Raises:
        ConfigError: if a dial is out of range, or H, mu and tau contradict one another.
    """

    dimension: int = 20
    H: float = 1.0
    mu: float = 0.05
    tau: float = 0.2
    zeta_star: float = 1.0
    sigma: float = 1.0
    B: float = 10.0
    samples_per_client: int = 100
    size_exponent: float = 0.0

    def __post_init__(self) -> None:
        in_range("task.dimension", self.dimension, least=2)
        in_range("task.mu", self.mu, above=0)
        in_range("task.H", self.H, above=0)
        for name in ("tau", "zeta_star", "sigma", "B"):
            in_range(f"task.{name}", getattr(self, name), least=0)
        if self.mu > self.H:
            raise ConfigError("task.mu", self.mu, f"a number > 0 and <= task.H = {self.H:g}",
                              "Strong convexity cannot exceed smoothness.")
        if self.tau > (self.H - self.mu) * (1 + 1e-12):  # 0.3 - 0.1 is a little below 0.2
            raise ConfigError("task.tau", self.tau, f"a number >= 0 and <= task.H - task.mu = {self.H:g} - "
                              f"{self.mu:g} = {self.H - self.mu:g}",
                              "All Hessians lie between mu and H; lower tau or raise H.")
        check_sizes(self.samples_per_client, self.size_exponent)

    def build(self, clients: int, seed: int, dtype: torch.dtype) -> QuadraticTask:
        """Return the problem of a seed.

        Raises:
            ConfigError: if tau or zeta_star is above 0 for a single client.
        """
        in_range("clients", clients, least=1)
        require_two_clients(clients, tau=self.tau, zeta_star=self.zeta_star)
        rng, d = generator(seed, "problem"), self.dimension
        sizes = client_sizes(clients, self.samples_per_client, self.size_exponent, rng)
        p = sizes / sizes.sum()
        basis = _orthonormal(rng, d, d)
        spectrum = np.geomspace(self.mu, self.H - self.tau, d)
        common = (basis * spectrum) @ basis.T
        # mu and H are exact: the lowest eigenvector is in no projection, the highest in the first.
        within = basis[:, :0:-1]
        A = np.stack([common + self.tau * b for b in _projections(rng, within, clients)])
        A = (A + A.transpose(0, 2, 1)) / 2
        optimum = rng.standard_normal(d)
        optimum *= self.B / np.linalg.norm(optimum)
        spread = rng.standard_normal((clients, d))
        spread -= np.linalg.solve(np.einsum("m,mij->ij", p, A), np.einsum("m,mij,mj->i", p, A, spread))
        zeta = np.sqrt(p @ np.square(np.einsum("mij,mj->mi", A, spread)).sum(1))
        optima = optimum + spread * (self.zeta_star / zeta if self.zeta_star else 0.0)
        x0 = torch.zeros(d, dtype=dtype)
        return QuadraticTask(torch.from_numpy(A), torch.from_numpy(optima), x0, self.sigma, sizes)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Return a random matrix with orthonormal columns."""
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    return q * np.sign(np.diag(r))


def _projections(rng: np.random.Generator, within: np.ndarray, clients: int) -> list[np.ndarray]:
    """Return a projection for each client, into the span of the columns of ``within`` [d, q].

    Clients come in pairs of complementary halves; the first half holds the first columns.
    """
    q = within.shape[1]
    whole, half = within @ within.T, -(-q // 2)
    drawn: list[np.ndarray] = []
    while len(drawn) < clients:
        axes = within @ (_orthonormal(rng, q, half) if drawn else np.eye(q, half))
        drawn += [axes @ axes.T, whole - axes @ axes.T]
    return drawn[:clients]
