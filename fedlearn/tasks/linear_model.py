"""Linear models with an l2 term: convex problems on data, with an optimum known to rounding.

    F(x) = sum_m p_m F_m(x),   F_m(x) = (1/n_m) sum_i loss(a_i . x, y_i) + l2 / 2 |x|^2,   p_m = n_m / n
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ..contracts import ClientOracle, Vec
from ..data.store import ClientStore
from ..errors import ConfigError, one_of
from ..oracles.autograd import Autograd
from ..oracles.closed_form import LinearModelOracle, Link
from .supervised import SupervisedTask
from .synthetic import dissimilarity, extremes, shares

ORACLES = ("auto", "closed_form", "autograd")


class LinearModelTask(SupervisedTask):
    """A linear model without intercept, started at 0; the l2 term belongs to every client's objective.

    ``store`` has features [n, P] and real labels [n]; ``test`` is held-out (features, labels).
    """

    def __init__(self, store: ClientStore, link: Link, l2: float, test: tuple[Tensor, Tensor] | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        # Without drawing first weights, which would move torch's global stream.
        model = nn.utils.skip_init(nn.Linear, store.features.shape[1], 1, bias=False)
        nn.init.zeros_(model.weight)
        store = ClientStore(store.features.to(dtype), store.labels.to(dtype), store.offsets)
        super().__init__(model, link.loss, store, test, dtype)
        self.store: ClientStore = store
        self.link, self.l2 = link, l2
        self.p = shares(self.sizes)

    def oracle(self, kind: str = "auto", precision: str = "float32") -> ClientOracle:
        """Return a closed-form oracle (auto; it stacks), or autograd on a copy of the model."""
        if kind not in ORACLES:
            raise ConfigError("oracle", kind, one_of(ORACLES, kind))
        if precision != "float32":
            raise ConfigError("precision", precision, f"float32 with task {type(self).__name__}",
                              "Its closed forms compute in the dtype of the data.")
        if kind != "autograd":
            return LinearModelOracle(self.store, self.link, self.l2)
        model = deepcopy(self.model)
        (weights,) = model.parameters()

        def regularised(out: Tensor, y: Tensor) -> Tensor:
            return self.criterion(out, y) + self.l2 / 2 * weights.square().sum()

        return Autograd(model, regularised, self.store, self.prepare)

    def regroup(self, groups: Sequence[Sequence[int]]) -> LinearModelTask:
        """Return the task in which client i holds the samples of the clients ``groups[i]``."""
        store = super().regroup(groups).store
        assert isinstance(store, ClientStore)
        return LinearModelTask(store, self.link, self.l2, self.test, self.dtype)

    @cached_property
    def optimum(self) -> Vec:
        """The minimiser x* of F, float64 [P], by Newton's method to rounding."""
        x = torch.zeros(self.x0.numel(), dtype=torch.float64)
        for _ in range(100):
            gradient = self.p @ self._gradients(x)
            hessian = torch.einsum("m,mij->ij", self.p, self._hessians(x))
            step = torch.linalg.solve(hessian, gradient)
            decrement, size = float(gradient @ step), 1.0
            # Far away a whole step may overshoot; near by, F is too flat to be compared.
            while decrement > 1e-8 and self._value(x - size * step) > self._value(x) - size * decrement / 4:
                size /= 2
            x = x - size * step
            if decrement < 1e-20:
                break
        return x

    @cached_property
    def minimum(self) -> float:
        """F(x*)."""
        return self._value(self.optimum)

    def constants(self) -> dict[str, float]:
        """Return the constants of the theory, exact up to rounding for this data.

        ``H``: smoothness of every F_m; ``mu``: strong convexity of F (of a logistic F: l2);
        measured at x*: ``tau``, the largest spectral norm of hess F_m - hess F_n, ``tau_mean``, of
        hess F_m - hess F, ``zeta_star``: (sum p |grad F_m|^2)^(1/2), and ``sigma``: the root mean
        square of a single sample's gradient noise; ``B``: |x0 - x*|; ``M``: clients.
        """
        x = self.optimum
        hessians, gradients = self._hessians(x), self._gradients(x)
        residuals = (self.link.mean(self._features @ x) - self._labels).square()
        moments = self._per_client(residuals * self._features.square().sum(1))
        plain = gradients - self.l2 * x
        curved = extremes(self._grams(torch.full_like(residuals, self.link.curvature)))[1] + self.l2
        constant = self.link.curvature == 1.0
        mean = torch.einsum("m,mij->ij", self.p, hessians)
        return {"H": curved, "mu": extremes(mean)[0] if constant else self.l2,
                **dissimilarity(hessians, gradients, self.p),
                "sigma": float((self.p @ (moments - plain.square().sum(1))).clamp_min(0).sqrt()),
                "B": float((self.x0.double() - x).norm()), "M": len(self.sizes)}

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return ``loss`` F(x) on the clients' data, ``suboptimality`` F(x) - F* and ``distance`` |x - x*|.

        With held-out data, ``accuracy`` on it for labels in {0, 1}. In float64.
        """
        x = x.double()
        away = x - self.optimum
        # As grad F(x*) = 0, F(x) - F* is the mean divergence: no cancellation of two close losses.
        scores, best = self._features @ x, self._features @ self.optimum
        above = float(self.link.divergence(scores, best).mean() + self.l2 / 2 * away @ away)
        metrics = {"loss": self._value(x), "suboptimality": max(above, 0.0), "distance": float(away.norm())}
        if self.test is not None:
            guess = self.test[0].double() @ x > 0
            metrics["accuracy"] = float((guess == (self.test[1] > 0.5)).double().mean())
        return metrics

    def evaluator(self, samples: int | None, rng: np.random.Generator) -> LinearModelTask:
        """Return the task itself: an evaluation changes nothing in it.

        Raises:
            ConfigError: if some samples only are asked for.
        """
        if samples is not None:
            raise ConfigError("evaluate.samples", samples, f"null with task {type(self).__name__}",
                              "Its evaluation is exact, on the data of all clients.")
        return self

    @property
    def _features(self) -> Tensor:
        return self.store.features.double()

    @property
    def _labels(self) -> Tensor:
        return self.store.labels.double()

    def _value(self, x: Vec) -> float:
        # The mean over all samples is the mean over clients with the weights p_m.
        return float(self.link.pointwise(self._features @ x, self._labels).mean() + self.l2 / 2 * x @ x)

    def _gradients(self, x: Vec) -> Tensor:
        """Return grad F_m(x) of all clients, float64 [clients, P]."""
        features = self._features
        residuals = self.link.mean(features @ x) - self._labels
        return self._per_client(residuals[:, None] * features) + self.l2 * x

    def _hessians(self, x: Vec) -> Tensor:
        """Return hess F_m(x) of all clients, float64 [clients, P, P]."""
        ridge = self.l2 * torch.eye(len(x), dtype=torch.float64)
        return self._grams(self.link.slope(self._features @ x)) + ridge

    def _grams(self, weights: Tensor) -> Tensor:
        """Return the mean of weight a a' over the samples of each client."""
        sizes = self.sizes.tolist()
        parts = zip(self._features.split(sizes), weights.split(sizes), strict=True)
        return torch.stack([a.mT @ (w[:, None] * a) / len(a) for a, w in parts])

    def _per_client(self, values: Tensor) -> Tensor:
        """Return the mean over the samples of each client: [n, ...] -> [clients, ...]."""
        return torch.stack([part.mean(0) for part in values.split(self.sizes.tolist())])
