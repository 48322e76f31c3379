"""The virtual clock: simulated seconds of a client's reply, the same wherever it is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import in_range
from ..seeds import generator


@dataclass(frozen=True)
class Clock:
    """How long clients take, in simulated seconds: computing, and two messages over their link.

    A client's median step takes ``step_seconds`` times its own factor exp(``spread`` z), z standard
    normal, the same in all rounds; with ``straggler_probability`` it straggles in a round, and its
    steps then take ``straggler_slowdown`` times as long. ``latency`` is seconds per message;
    ``up_mbit`` and ``down_mbit`` are 10^6 bits per second, from and to the client.
    """

    step_seconds: float = 0.01
    spread: float = 0.0
    latency: float = 0.05
    up_mbit: float = 10.0
    down_mbit: float = 50.0
    straggler_probability: float = 0.0
    straggler_slowdown: float = 10.0

    def __post_init__(self) -> None:
        in_range("clock.step_seconds", self.step_seconds, least=0, below=math.inf)
        in_range("clock.spread", self.spread, least=0, below=math.inf)
        in_range("clock.latency", self.latency, least=0, below=math.inf)
        in_range("clock.up_mbit", self.up_mbit, above=0)
        in_range("clock.down_mbit", self.down_mbit, above=0)
        in_range("clock.straggler_probability", self.straggler_probability, least=0, most=1)
        in_range("clock.straggler_slowdown", self.straggler_slowdown, least=1, below=math.inf)

    def duration(self, client: int, round: int, steps: int, bytes_down: int, bytes_up: int,
                 seed: int) -> float:
        """Return the seconds from sending the broadcast to having the client's reply."""
        compute = steps * self.step_seconds * self._slowness(client, round, seed)
        wire = 8e-6 * (bytes_down / self.down_mbit + bytes_up / self.up_mbit)
        return compute + wire + 2 * self.latency

    def _slowness(self, client: int, round: int, seed: int) -> float:
        factor = 1.0
        if self.spread:
            factor = math.exp(self.spread * generator(seed, "speed", 0, client).standard_normal())
        if self.straggler_probability:
            straggles = generator(seed, "straggle", round, client).random() < self.straggler_probability
            factor *= self.straggler_slowdown if straggles else 1.0
        return factor
