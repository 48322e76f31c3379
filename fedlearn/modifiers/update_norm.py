"""Update norms: the length of the mean upload of every round, in the metrics ``update_l2`` and ``update_l1``.

It is the norm of the pseudo-gradient times the step sizes of the clients, whatever the server makes of it, and what
``schedule=refined`` is made of. It costs one pass over the model in a round, and that the server updates a large model
in one piece and not piece by piece; nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..contracts import Modifier, Msg, RoundInfo, ServerAlgorithm, Tree, Vec
from ..errors import ConfigError
from ..vectors import norm
from .wrapped import Around, OnServer


@dataclass(frozen=True)
class UpdateNorm(Modifier):
    """Measure the mean ``upload`` of every round.

    Raises:
        ConfigError: if the server sees no mean.
    """

    upload: str = "dx"

    def around(self, algorithm: ServerAlgorithm) -> ServerAlgorithm:
        if algorithm.individual:
            raise ConfigError("modifiers.update_norm", "UpdateNorm", "an algorithm whose server sees a mean",
                              f"The server of {type(algorithm).__name__} sees every upload by itself.")
        return Measured(algorithm, self.upload)


class Norms(NamedTuple):
    """The norms of the last mean upload, float64 [1] each."""

    l2: Vec
    l1: Vec


@dataclass(frozen=True)
class Measured(OnServer):
    """The algorithm, with the norms of what its server saw last."""

    upload: str

    def server_init(self, x0: Vec) -> Around:
        zero = x0.new_zeros(1, dtype=torch.float64)
        return Around(self.inner.server_init(x0), Norms(zero, zero.clone()))

    def server_update(self, s: Around, mean: Msg, info: RoundInfo) -> Around:
        if self.upload not in mean:
            raise ConfigError("modifiers.update_norm.upload", self.upload, " or ".join(sorted(mean)),
                              "These are what the clients send.")
        v = mean[self.upload]
        # A server may update in place what it is given.
        norms = Norms(norm(v).double(), v.abs().sum(-1, keepdim=True, dtype=torch.float64))
        return Around(self.inner.server_update(s.inner, mean, info), norms)

    def metrics(self, s: Tree) -> dict[str, float]:
        return {**super().metrics(s), "update_l2": float(s.own.l2), "update_l1": float(s.own.l1)}
