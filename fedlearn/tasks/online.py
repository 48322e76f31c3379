"""Online linear regression with the absolute loss: a game in T steps, whose best fixed answer loses nothing.

    f_t^m(x) = |<a_t^m, x - w>|,   |w| = B,   a_t^m uniform on the unit sphere of a fixed subspace, which holds w

The loss is 1-Lipschitz and convex. The regret of a player is the mean of the losses it suffers: the comparator w has
none. A low ``rank`` keeps the game hard in many dimensions, where a_t from the whole space would be nearly orthogonal
to w, and x = 0 a good answer. A draw is the vector a_t of a step: a mini-batch is always one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..contracts import ClientOracle, LocalPlan, Vec
from ..errors import ConfigError, in_range, one_of
from ..oracles.absolute import AbsoluteOracle
from ..seeds import generator

ORACLES = ("auto", "closed_form")
BLOCK = 64  # steps whose vectors are drawn together


class OnlineTask:
    """``clients`` machines in the game with the comparator ``w`` [P] and the subspace of ``Q`` [P, rank].

    The dtype of ``w`` is that of the run. ``identical``: all machines meet the same a_t at the same step.
    """

    def __init__(self, clients: int, w: Vec, Q: Tensor, identical: bool, seed: int) -> None:
        self.sizes: np.ndarray = np.ones(clients, dtype=np.int64)
        self.w, self.Q, self.identical, self.seed = w, Q.to(w.dtype), identical, seed
        rank = Q.shape[1]   # of a uniform unit vector c in so many dimensions, E|<c, v>| = scale |v|
        self.scale = math.exp(math.lgamma(rank / 2) - math.lgamma((rank + 1) / 2)) / math.sqrt(math.pi)
        self._blocks = lru_cache(4)(self._block)

    def initial(self, seed: int) -> Vec:
        """Return 0 [P]."""
        return torch.zeros_like(self.w)

    def oracle(self, kind: str = "auto") -> ClientOracle:
        """Return a closed-form oracle; it stacks."""
        if kind not in ORACLES:
            raise ConfigError("oracle", kind, one_of(ORACLES, kind), "The game has no network.")
        return AbsoluteOracle(self.w, self.Q, self.scale)

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Tensor]:
        """Return a_t [P] of each of the K steps of a round, the first being step ``local.before`` of the game.

        Raises:
            ConfigError: if machines do not count their steps, so that they could not meet the same a_t.
        """
        steps = local.steps_for(1)
        if not self.identical:
            return list(self._vectors(rng, steps))
        if getattr(local, "steps", steps) is None:
            raise ConfigError("local.steps", None, "a number of steps with task.identical=true",
                              "Machines meet the same loss at the same step.")
        return [self._blocks(t // BLOCK)[t % BLOCK] for t in range(local.before, local.before + steps)]

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return ``loss``, the mean of f_t(x) over all a_t (its minimum is 0), and ``distance``, |x - w|."""
        away = x.double() - self.w.double()
        return {"loss": self.scale * float((away @ self.Q.double()).norm()), "distance": float(away.norm())}

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_blocks"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._blocks = lru_cache(4)(self._block)

    def _block(self, i: int) -> Tensor:
        return self._vectors(generator(self.seed, "problem", 1, i), BLOCK)

    def _vectors(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return uniform unit vectors of the subspace, [count, P]."""
        c = rng.standard_normal((count, self.Q.shape[1]))
        return torch.from_numpy(c / np.linalg.norm(c, axis=1, keepdims=True)).to(self.w.dtype) @ self.Q.mT


@dataclass(frozen=True)
class Online:
    """A random game: ``B`` is the norm of the comparator, ``rank`` the dimension of the losses' subspace.

    Raises:
        ConfigError: if a dial is out of range, naming it.
    """

    dimension: int = 100
    rank: int = 4
    B: float = 1.0
    identical: bool = True

    def __post_init__(self) -> None:
        in_range("task.dimension", self.dimension, least=1)
        in_range("task.rank", self.rank, least=1, most=self.dimension)
        in_range("task.B", self.B, above=0)

    def build(self, clients: int, seed: int, dtype: torch.dtype) -> OnlineTask:
        """Return the game of a seed."""
        in_range("clients", clients, least=1)
        rng = generator(seed, "problem")
        Q, _ = np.linalg.qr(rng.standard_normal((self.dimension, self.rank)))
        w = Q @ rng.standard_normal(self.rank)
        w *= self.B / np.linalg.norm(w)
        return OnlineTask(clients, torch.from_numpy(w).to(dtype), torch.from_numpy(Q), self.identical, seed)
