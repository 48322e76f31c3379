"""Clip each upload to a norm.

    dx <- dx * min(1, C / ||dx||)

A stage of its own where differential privacy or a robust server asks for bounded updates; the
bound holds for the named vector only.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts import Msg, Stage
from ..errors import ClientError, in_range
from ..vectors import norm


@dataclass(frozen=True)
class Clip(Stage):
    """Scale ``vector`` of every upload down to Euclidean norm ``norm`` where it is longer."""

    norm: float = 1.0
    vector: str = "dx"

    def __post_init__(self) -> None:
        in_range("norm", self.norm, above=0)

    def encode(self, msg: Msg, client: int, round: int) -> Msg:
        """Return the message with the clipped vector."""
        if self.vector not in msg:
            raise ClientError(client, round, f"pipeline stage clip: no upload {self.vector!r}; "
                              f"the algorithm sends {', '.join(sorted(msg))}")
        v = msg[self.vector]
        return {**msg, self.vector: v * (self.norm / norm(v).clamp_min(self.norm))}
