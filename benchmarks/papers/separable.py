"""Objectives that are sums of one-dimensional functions: the kinks on which the bounds of Local SGD are shown.

    F(x) = sum_j f_j(x_j - centre_j),   f_j'(z) = left_j z for z < 0, right_j z for z >= 0, or any that is given

All clients share F; a stochastic gradient adds noise_j times an independent number to coordinate j: normal, or +1 and
-1 alike. With ``antithetic`` the second half of the coordinates gets the first half's noise with the other sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlearn.contracts import LocalPlan, Vec
from fedlearn.oracles.closed_form import ClosedForm


class Separable:
    """A task of ``clients`` clients with one nominal sample each; all arrays are float64 [P].

    ``slope(z)`` returns F' entrywise and ``value(z)`` the value of each coordinate's function, of z = x - centre.
    """

    def __init__(self, clients: int, x0: Tensor, noise: Tensor, slope: Callable[[Tensor], Tensor],
                 value: Callable[[Tensor], Tensor], centre: Tensor | float = 0.0, signs: bool = False,
                 antithetic: bool = False) -> None:
        self.sizes: np.ndarray = np.ones(clients, dtype=np.int64)
        self.x0, self.noise, self.slope, self.value, self.centre = x0.double(), noise.double(), slope, value, centre
        self.signs, self.antithetic = signs, antithetic
        self.noisy = np.flatnonzero(noise.numpy())
        if antithetic:
            self.noisy = self.noisy[:len(self.noisy) // 2]

    def initial(self, seed: int) -> Vec:
        """Return x0 [P]."""
        return self.x0.clone()

    def oracle(self, kind: str = "auto") -> SeparableOracle:
        """Return the closed-form oracle; it stacks."""
        return SeparableOracle(self)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Any]:
        """Return the numbers that the noise is made of, [noisy coordinates] for each step."""
        shape = (local.steps_for(1), len(self.noisy))
        drawn = 2.0 * rng.integers(2, size=shape) - 1 if self.signs else rng.standard_normal(shape)
        return list(drawn)

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return ``suboptimality``, F(x), whose minimum is 0, and the mean of the coordinates of x."""
        return {"suboptimality": float(self.value(x - self.centre).sum()), "mean": float(x.mean())}


class SeparableOracle(ClosedForm):
    """The gradient F'(x) plus the noise of the step."""

    def __init__(self, task: Separable) -> None:
        super().__init__()
        self.task, self.drawn = task, torch.empty(0)
        self.columns = torch.from_numpy(task.noisy)

    def room(self, batch: int) -> int:
        """Return how many clients fill the second-level cache."""
        return max(1, 2**16 // self.task.x0.numel())

    def at(self, draws: Sequence[np.ndarray]) -> None:
        """Set the noise of each client that still works."""
        self.drawn = torch.from_numpy(np.stack(draws))

    def _first_order(self, x: Vec) -> tuple[Tensor, Vec]:
        task, z = self.task, x - self.task.centre
        gradient = task.slope(z)
        noise = self.drawn * task.noise[self.columns]
        gradient[:, self.columns] += noise
        if task.antithetic:
            gradient[:, self.columns + len(task.noise) // 2] -= noise
        return task.value(z).sum(-1, keepdim=True), gradient

    def _second_order(self, x: Vec, v: Vec) -> Vec:
        raise NotImplementedError("no Hessian is needed here")

    def _full(self, x: Vec) -> Vec:
        return self.task.slope(x - self.task.centre)

    def _whole(self, x: Vec) -> Tensor:
        return self.task.value(x - self.task.centre).sum(-1, keepdim=True)



def kink(left: Tensor | float, right: Tensor | float) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the slope and the value of functions with a kink in the derivative at 0."""

    def slope(z: Tensor) -> Tensor:
        return torch.where(z < 0, left * z, right * z)

    def value(z: Tensor) -> Tensor:
        return slope(z) * z / 2

    return slope, value