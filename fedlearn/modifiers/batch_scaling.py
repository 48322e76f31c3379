"""Batch scaling rules: the step size, and what goes with it, for another batch than that for which it was tuned.

Linear: P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv 1706.02677, 2017. Square
root, and the rule for Adam: S. Malladi, K. Lyu, A. Panigrahi, S. Arora, "On the SDEs and Scaling Rules for Adaptive
Gradient Algorithms", NeurIPS 2022.

    kappa = b / base                b: local.batch_size, base: the batch at which the algorithm's values were tuned
    linear:   lr <- kappa lr                                                        for SGD
    sqrt:     lr <- kappa^(1/2) lr
    adam:     lr <- kappa^(1/2) lr,  1 - beta_i <- kappa (1 - beta_i),  eps <- eps / kappa^(1/2)    for Adam on clients

======  ======  =======  ==============================================================
symbol  field   default  where the default comes from
======  ======  =======  ==============================================================
        rule    linear   local steps are steps of SGD in most algorithms
base    base    20       local.batch_size, so that nothing changes until one of them does
b       batch   20       must be local.batch_size, which is checked
======  ======  =======  ==============================================================

Compare runs at equal samples. kappa (1 - beta_i) must be below 1. The server's step size, and the moments of a server,
stay: ``adam`` is refused for algorithms whose clients do not run Adam. Where batches grow in the course of a run, the
norm test scales step sizes itself.

Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ..contracts import LocalPlan, Modifier, ServerAlgorithm, Tree
from ..errors import ConfigError, in_range, one_of
from .wrapped import Wrapped

POWERS = {"linear": 1.0, "sqrt": 0.5, "adam": 0.5}
EPSILONS = ("eps", "lam")   # what is added to the root in the algorithms whose clients run Adam


@dataclass(frozen=True)
class BatchScaling(Modifier):
    """Scale an algorithm's values from batches of ``base`` samples to those of ``batch``.

    Raises:
        ConfigError: if a field is out of range.
    """

    rule: str = "linear"
    base: int = 20
    batch: int = 20

    def __post_init__(self) -> None:
        if self.rule not in POWERS:
            raise ConfigError("rule", self.rule, one_of(POWERS, self.rule))
        in_range("base", self.base, least=1, whole=True)
        in_range("batch", self.batch, least=1, whole=True)

    def around(self, algorithm: ServerAlgorithm) -> ServerAlgorithm:
        name, own = type(algorithm).__name__, {f.name for f in fields(algorithm)}   # type: ignore[arg-type]
        kappa, of = self.batch / self.base, vars(algorithm)
        if "lr" not in own:
            raise ConfigError("modifiers.batch_scaling", "BatchScaling", "an algorithm with a client step size lr, "
                              "as the first of the modifiers", f"Found {name}.")
        scaled: dict[str, Any] = {"lr": of["lr"] * kappa ** POWERS[self.rule]}
        if self.rule == "adam":
            epsilon = next((field for field in EPSILONS if field in own), None)
            if epsilon is None or not {"beta1", "beta2"} <= own:
                raise ConfigError("modifiers.batch_scaling.rule", "adam", f"linear or sqrt with algorithm {name}",
                                  "Its clients do not run Adam.")
            for beta in ("beta1", "beta2"):
                if kappa * (1 - of[beta]) >= 1:
                    raise ConfigError("modifiers.batch_scaling.batch", self.batch,
                                      f"less than base / (1 - {beta}) = {self.base / (1 - of[beta]):g}",
                                      f"{beta} would be 0 or below.")
                scaled[beta] = 1 - kappa * (1 - of[beta])
            scaled[epsilon] = of[epsilon] / kappa**0.5
        return Scaled(replace(algorithm, **scaled), self.batch)     # type: ignore[type-var]


@dataclass(frozen=True)
class Scaled(Wrapped):
    """The algorithm with scaled values, for batches of one size."""

    batch: int

    def plan(self, s: Tree, local: LocalPlan) -> LocalPlan:
        """Return the inner plan, after a look at its batches."""
        local = self.inner.plan(s, local)
        found = getattr(local, "batch_size", self.batch)
        if found != self.batch:
            raise ConfigError("local.batch_size", found, f"modifiers.batch_scaling.batch = {self.batch}",
                              "Both are the size of a mini-batch.")
        return local
