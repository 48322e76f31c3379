"""A round on Ray actors: who is free takes the next clients; what a lost actor had runs again.

Ray itself is handed in: it is imported in one place.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import WorkerError
from ..work import Record, Setup, Work, cost
from .balance import longest_first
from .gather import decode, first


@dataclass
class Seat:
    """An actor, the clients whose uploads are in its partial sum, and what it is doing."""

    actor: Any
    done: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    answer: Any = None   # the reference of the call under way
    ping: Any = None
    heard: float = 0.0   # when it last gave a sign of life


class Pool(Protocol):
    """The open actors, as a round needs them."""

    backend: Any
    setup: Setup
    seats: list[Seat]

    def replace(self, seat: Seat) -> None:
        """Put a new actor on a seat."""
        ...


class Turn:
    """One round on the actors: hand out, collect, and run again what died."""

    def __init__(self, ray: Any, pool: Pool, work: Work, token: str) -> None:
        self.ray, self.pool, self.work, self.token = ray, pool, work, token
        self.seats, self.settings = pool.seats, pool.backend
        sizes = pool.setup.task.sizes
        self.costs = {m: cost(sizes, m, work.local) for m in work.clients}
        self.queue = deque(longest_first(self.costs))
        arrays = {name: v.detach().cpu().numpy() for name, v in work.broadcast.items()}
        self.round = self.ray.put((replace(work, broadcast={}), arrays))
        self.parts: list[tuple] = []
        self.failures: list[Exception] = []
        self.lost = 0

    def run(self) -> list[tuple]:
        """Return (layout, clients, records, buffer, bound) of all partial sums.

        Raises:
            FedlearnError: that of the earliest client, after all actors have come to rest.
        """
        while True:
            for seat in self.seats:
                if seat.answer is None:
                    self._employ(seat)
            busy = {seat.answer: seat for seat in self.seats if seat.answer is not None}
            if not busy:
                break
            done, _ = self.ray.wait(list(busy), num_returns=1, timeout=self.settings.timeout / 4)
            for answer in done:
                self._hear(busy[answer])
            for seat in self.seats:
                if seat.answer is not None:
                    self._feel_pulse(seat)
        if self.failures:
            raise first(self.failures, self.work)
        return self.parts

    def _employ(self, seat: Seat) -> None:
        """Give a free actor the next clients, or ask for its sum when there are none."""
        seat.heard = time.monotonic()
        if self.failures:
            return
        if self.queue:
            share = -(-len(self.queue) // (3 * len(self.seats)))
            seat.busy = [self.queue.popleft() for _ in range(min(self.settings.chunk or share,
                                                                 len(self.queue)))]
            seat.answer = seat.actor.run.remote(self.token, [self.round], seat.busy)
        elif seat.done:
            seat.answer = seat.actor.collect.remote(self.token)

    def _hear(self, seat: Seat) -> None:
        """Take an actor's answer in."""
        try:
            answer = self.ray.get(seat.answer)
        except self.ray.exceptions.RayTaskError as e:
            self.failures.append(WorkerError(f"a Ray actor failed: {last_line(e)}"))
            seat.answer = None
            return
        except self.ray.exceptions.RayError as e:
            self._lose(seat, last_line(e))
            return
        seat.answer = None
        if not seat.busy:
            layout, buffer, bound = answer
            self.parts.append((layout, seat.done, seat.records, buffer, bound))
            seat.done, seat.records = [], []
        elif answer and answer[0] == "error":
            self.failures.append(decode(answer[1:]))
        else:
            seat.done += seat.busy
            seat.records += answer
            seat.busy = []

    def _lose(self, seat: Seat, why: str) -> None:
        """Replace a dead actor; what it had of this round runs again."""
        self.lost += 1
        if self.lost > self.settings.replacements:
            raise WorkerError(f"{self.lost} Ray actors were lost in round {self.work.round}, allowed: "
                              f"{self.settings.replacements} (backend.replacements); the last one: {why}")
        again = longest_first({m: self.costs[m] for m in seat.done + seat.busy})
        self.queue = deque(longest_first({m: self.costs[m] for m in [*again, *self.queue]}))
        seat.done, seat.records, seat.busy, seat.answer, seat.ping = [], [], [], None, None
        self.pool.replace(seat)

    def _feel_pulse(self, seat: Seat) -> None:
        """Ask a working actor for a sign of life now and then."""
        timeout, now = self.settings.timeout, time.monotonic()
        if seat.ping is None:
            if now - seat.heard > timeout / 4:
                seat.ping = seat.actor.alive.options(concurrency_group="health").remote(), now
            return
        ping, sent = seat.ping
        if self.ray.wait([ping], timeout=0)[0]:
            seat.ping, seat.heard = None, now
        elif now - sent > timeout:
            self._lose(seat, f"it gave no sign of life for {timeout:g} s")


def last_line(e: BaseException) -> str:
    """Return the end of what an error of Ray says, which is where the cause stands."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[-1] if lines else type(e).__name__)[:500]
