"""A round on Ray actors: who is free takes the next clients; what a lost actor had runs again.

When all clients are done the actors' partial sums are added up, piece by piece: neither the coordinator nor
Ray's object store ever holds a partial sum beside the sum, unless it is small. An actor keeps its own until the next
round, so that after a loss in the middle the adding up begins anew.

Ray itself is handed in: it is imported in one place.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from ..errors import ClientError, WorkerError
from ..reducers.layout import Layout
from ..work import SUMS, Part, Record, Reduced, Setup, Work, cost
from .balance import longest_first
from .gather import agree, check_bound, decode, first, in_order, refusals

PIECE = 1 << 22  # entries of a partial sum that are fetched at a time
AT_ONCE = 4      # pieces under way, whatever the number of actors


@dataclass
class Seat:
    """An actor, the clients whose uploads are in its partial sum, and what it is doing."""

    actor: Any
    done: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    refused: list[ClientError] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    answer: Any = None   # the reference of the call under way
    ping: Any = None
    heard: float = 0.0   # when it last gave a sign of life
    part: tuple[Layout, float] | None = None   # layout and bound of its partial sum
    small: Any = None    # all of its partial sum, where that is small
    added: int = 0       # entries of its partial sum that are in the sum

    def forget(self) -> None:
        """Be as at the start of a round."""
        self.done, self.records, self.refused, self.busy = [], [], [], []
        self.keep()

    def keep(self) -> None:
        """Have its partial sum, of which nothing was added up yet."""
        self.answer = self.ping = self.part = self.small = None
        self.added = 0


class Pool(Protocol):
    """The open actors, as a round needs them."""

    backend: Any
    setup: Setup
    seats: list[Seat]

    def replace(self, seat: Seat) -> None:
        """Put a new actor on a seat."""
        ...


class Turn:
    """One round on the actors: hand out, add up, and run again what died."""

    def __init__(self, ray: Any, pool: Pool, work: Work, token: str) -> None:
        self.ray, self.pool, self.work, self.token = ray, pool, work, token
        self.seats, self.settings = pool.seats, pool.backend
        sizes = pool.setup.task.sizes
        self.costs = {m: cost(sizes, m, work.local) for m in work.clients}
        self.queue = deque(longest_first(self.costs))
        self.round: Any = None    # the reference of the work: one copy on every host
        self.total = SUMS[pool.setup.reduce]()
        self.failures: list[Exception] = []
        self.lost = 0

    def run(self) -> Reduced:
        """Return the sum of all uploads, and the records.

        Raises:
            FedlearnError: that of the earliest client, after all actors have come to rest.
        """
        while True:
            self._assign()
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
        return Reduced(self.total, in_order((r for seat in self.seats for r in seat.records), self.work),
                       refusals((e for seat in self.seats for e in seat.refused), self.work))

    def _assign(self) -> None:
        """Give free actors the next clients; when all are done, ask for their sums."""
        free = [seat for seat in self.seats if seat.answer is None]
        if self.failures:
            return
        if self.queue:
            for seat in free:
                self._employ(seat)
        elif not any(seat.busy for seat in self.seats):
            self.round = None    # what was broadcast is not needed any more
            waiting = [seat for seat in self.seats if seat.done]
            for seat in waiting:
                if seat.answer is None and seat.part is None:
                    self._ask(seat, seat.actor.collect.remote(self.token))
            if all(seat.part for seat in waiting):
                self._fetch(waiting)

    def _ask(self, seat: Seat, answer: Any) -> None:
        seat.heard, seat.answer = time.monotonic(), answer

    def _employ(self, seat: Seat) -> None:
        """Give a free actor the next clients."""
        if not self.queue:
            return
        if self.round is None:
            arrays = {name: v.detach().cpu().numpy() for name, v in self.work.broadcast.items()}
            self.round = self.ray.put((replace(self.work, broadcast={}), arrays))
        share = -(-len(self.queue) // (3 * len(self.seats)))
        seat.busy = [self.queue.popleft() for _ in range(min(self.settings.chunk or share, len(self.queue)))]
        self._ask(seat, seat.actor.run.remote(self.token, [self.round], seat.busy))

    def _fetch(self, seats: Sequence[Seat]) -> None:
        """Ask for the next pieces of partial sums whose layouts and bounds are all known."""
        parts = [seat.part for seat in seats if seat.part]
        if parts and self.total.layout is None:
            layouts, bounds = zip(*parts, strict=True)
            shares = [seat.done for seat in seats]
            agree(layouts, shares, self.work)
            check_bound(bounds, shares, self.work)
            self.total.shape_as(layouts[0])
            self.total.bound = sum(bounds)
            for seat in seats:
                if seat.small is not None:
                    self._add(seat, seat.small)
        under_way = sum(seat.answer is not None for seat in seats)
        for seat in seats:
            if seat.answer is None and seat.added < len(self.total.buffer) and under_way < AT_ONCE:
                self._ask(seat, seat.actor.piece.remote(self.token, seat.added, PIECE))
                under_way += 1

    def _add(self, seat: Seat, piece: np.ndarray) -> None:
        """Add a piece of a partial sum, straight from shared memory."""
        into = self.total.buffer.numpy()[seat.added:seat.added + len(piece)]
        np.add(into, piece, out=into)
        seat.added += len(piece)

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
        if isinstance(answer, np.ndarray):
            self._add(seat, answer)
        elif not seat.busy:
            layout, bound, seat.small = answer
            seat.part = Layout.from_json(layout), bound
        elif not isinstance(answer, Part):
            self.failures.append(decode(answer[1:]))
            seat.busy = []
        else:
            seat.done += seat.busy
            seat.records += answer.records
            seat.refused += answer.refused
            seat.busy = []

    def _lose(self, seat: Seat, why: str) -> None:
        """Replace a dead actor; what it had of this round runs again."""
        self.lost += 1
        if self.lost > self.settings.replacements:
            raise WorkerError(f"{self.lost} Ray actors were lost in round {self.work.round}, allowed: "
                              f"{self.settings.replacements} (backend.replacements); the last one: {why}")
        self.queue = deque(longest_first({m: self.costs[m] for m in [*seat.done, *seat.busy, *self.queue]}))
        seat.forget()
        self.total = SUMS[self.pool.setup.reduce]()
        for other in self.seats:
            if not other.busy:
                other.keep()
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
