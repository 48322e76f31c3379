"""The oracle of online linear regression with the absolute loss: each step brings one vector a_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contracts import Vec
from ..vectors import dot
from .closed_form import ClosedForm


class AbsoluteOracle(ClosedForm):
    """f_t(x) = |<a_t, x - w>|, a_t [P] being the draw; the whole objective is ``scale`` |Q' (x - w)|.

    That is its mean where a_t is uniform on the unit sphere of the span of the orthonormal columns of ``Q`` [P, rank].
    """

    def __init__(self, w: Vec, Q: Tensor, scale: float) -> None:
        super().__init__()
        self.w, self.Q, self.scale = w, Q, scale
        self.a = w[:0]

    def at(self, draws: Sequence[Tensor]) -> None:
        """Set a_t of each client that still works."""
        self.a = torch.stack(list(draws))

    def _first_order(self, x: Vec) -> tuple[Tensor, Vec]:
        score = dot(self.a, x - self.w)
        return score.abs(), score.sign() * self.a

    def _second_order(self, x: Vec, v: Vec) -> Vec:
        return torch.zeros_like(x)

    def _whole(self, x: Vec) -> Tensor:
        return self.scale * torch.linalg.vector_norm((x - self.w) @ self.Q, dim=-1, keepdim=True)

    def _full(self, x: Vec) -> Vec:
        within = (x - self.w) @ self.Q
        length = torch.linalg.vector_norm(within, dim=-1, keepdim=True)
        return self.scale * (within / length.clamp_min(torch.finfo(x.dtype).tiny)) @ self.Q.mT
