"""A round on Ray actors: who is free takes the next clients; what a lost actor had runs again.

When all clients are done the actors' partial sums are added up, piece by piece: neither the coordinator nor
Ray's object store ever holds a partial sum beside the sum, unless it is small. An actor keeps its own until the next
round, so that after a loss in the middle the adding up begins anew. What arrives is compared with the checksum that its
actor made of it.

While a replacement starts the others go on. Who holds only some clients' data works only on these; clients that nobody
holds wait for a replacement, or a machine, that may bring them. Ray itself is handed in: it is imported in one place.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ...errors import DataError, WorkerError
from ...reducers.layout import Layout
from ...work import SUMS, Event, Part, Reduced, Setup, Work, bytes_of, cost
from ..balance import longest_first
from ..gather import agree, check_bound, decode, first, in_order, refusals
from .cluster import LOOK, RESUME, Watch, cause, last_line
from .machines import Machine, Machines
from .seat import Seat, checksum, wrapped

PIECE = 1 << 22  # entries of a partial sum that are fetched at a time
AT_ONCE = 4      # pieces under way, whatever the number of actors
ALONG = 1 << 16  # bytes up to which a broadcast travels with each call: there it is quicker, and needs no raylet
ALTERED = "what it handed over is not what it added up: its checksum is another"


class Pool(Protocol):
    """The open actors, as a round needs them."""

    backend: Any
    setup: Setup
    seats: list[Seat]
    watch: Watch
    happened: list[Event]
    startup: float      # seconds that a replacement may take to come up
    machines: Machines | None   # where each has data of its own

    def replace(self, seat: Seat, there: Machine | None = None) -> None:
        """Put a new actor on a seat."""
        ...

    def settle(self) -> None:
        """Find a machine for who has none."""
        ...

    def meet(self, seat: Seat, said: Any) -> None:
        """Note the first word of an actor."""
        ...


class Turn:
    """One round on the actors: hand out, add up, and run again what died."""

    def __init__(self, ray: Any, pool: Pool, work: Work, token: str) -> None:
        self.ray, self.pool, self.work, self.token = ray, pool, work, token
        self.seats, self.settings = pool.seats, pool.backend
        sizes = pool.setup.task.sizes
        self.costs = {m: cost(sizes, m, work.local) for m in work.clients}
        self.queue = deque(longest_first(self.costs))
        self.round: Any = None    # the work and its vectors or, of large ones, a reference: one copy on every host
        self.total = SUMS[pool.setup.reduce]()
        self.failures: list[Exception] = []
        self.lost = 0
        self.needless: set[int] = set()     # seats that have the data of nobody in the queue
        self.stuck: float | None = None     # since when clients wait and nobody works

    def run(self) -> Reduced:
        """Return the sum of all uploads, and the records.

        Raises:
            FedlearnError: that of the earliest client, after all actors have come to rest.
        """
        while True:
            self.pool.watch.look()
            self._assign()
            busy = {seat.answer: seat for seat in self.seats if seat.answer is not None}
            if not busy and (self.failures or not self.queue):
                break
            coming = {seat.hello: seat for seat in self.seats if seat.hello is not None}
            self._wait_for(coming.values(), None if busy else self.stuck or time.monotonic())
            if self.pool.machines is not None and self.pool.watch.silent is None and self.pool.machines.due():
                self._settle()
                coming = {seat.hello: seat for seat in self.seats if seat.hello is not None}
            pause = min(self.settings.timeout / 4, LOOK)
            if not busy and not coming:     # a machine is missing
                time.sleep(pause)
                continue
            done, _ = self.ray.wait([*busy, *coming], num_returns=1, timeout=pause)
            for answer in done:
                if answer in coming:
                    self._welcome(coming[answer])
                else:
                    self._hear(busy[answer])
            for seat in self.seats:
                if seat.answer is not None and (why := seat.pulse(self.ray, self.settings.timeout,
                                                                  self.settings.hang)):
                    self._lose(seat, why)
        for seat in self.seats:
            seat.made_up()
        if self.failures:
            raise first(self.failures, self.work)
        return Reduced(self.total, in_order((r for seat in self.seats for r in seat.records), self.work),
                       refusals((e for seat in self.seats for e in seat.refused), self.work))

    def _assign(self) -> None:
        """Give free actors the next clients; when all are done, ask for their sums."""
        free = [seat for seat in self.seats if seat.answer is None and seat.up]
        if self.failures:
            return
        if self.queue:
            for seat in free:
                self._employ(seat)
        elif not any(seat.busy for seat in self.seats):
            self.round = None    # what was broadcast is not needed any more
            waiting = [seat for seat in self.seats if seat.records]    # of none, nothing is in its sum
            for seat in waiting:
                if seat.answer is None and seat.part is None:
                    seat.ask(seat.actor.collect.remote(self.token))
            if all(seat.part for seat in waiting):
                self._fetch(waiting)

    def _employ(self, seat: Seat) -> None:
        """Give a free actor the next clients."""
        busy = self._next(seat)
        if not busy:
            return
        if self.round is None:
            arrays = {name: v.detach().cpu().numpy() for name, v in self.work.broadcast.items()}
            self.round = replace(self.work, broadcast={}), arrays
            if bytes_of(self.work.broadcast) > ALONG:
                self.pool.watch.check_raylet()
                self.round = self.ray.put(self.round)
        seat.busy = busy
        seat.ask(seat.actor.run.remote(self.token, [self.round], seat.busy))

    def _next(self, seat: Seat) -> list[int]:
        """Take the next clients that an actor can have out of the queue."""
        if seat.holds is None:
            share = -(-len(self.queue) // (3 * len(self.seats)))
            return [self.queue.popleft() for _ in range(min(self.settings.chunk or share, len(self.queue)))]
        if seat.number in self.needless:
            return []
        able = [(i, m) for i, m in enumerate(self.queue) if m in seat.holds]
        if not able:
            self.needless.add(seat.number)
            return []
        rivals = sum(other.hello is not None or other.has(able[0][1]) for other in self.seats)
        able = able[:self.settings.chunk or -(-len(able) // (3 * rivals))]
        for i, _ in reversed(able):
            del self.queue[i]
        return [m for _, m in able]

    def _fetch(self, seats: Sequence[Seat]) -> None:
        """Ask for the next pieces of partial sums whose layouts and bounds are all known."""
        parts = [seat.part for seat in seats if seat.part]
        if parts and self.total.layout is None:
            layouts, bounds, _ = zip(*parts, strict=True)
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
                seat.ask(seat.actor.piece.remote(self.token, seat.added, PIECE))
                under_way += 1

    def _add(self, seat: Seat, piece: np.ndarray) -> None:
        """Add a piece of a partial sum, straight from shared memory."""
        into = self.total.buffer.numpy()[seat.added:seat.added + len(piece)]
        np.add(into, piece, out=into)
        seat.added += len(piece)
        seat.check = wrapped(seat.check + checksum(piece))

    def _hear(self, seat: Seat) -> None:
        """Take an actor's answer in."""
        if seat.part is not None:
            self.pool.watch.check_raylet()  # a piece lies in the object store
        try:
            answer = self.ray.get(seat.answer)
        except self.ray.exceptions.RayTaskError as e:
            self.failures.append(WorkerError(f"a Ray actor failed: {last_line(e)}"))
            seat.answer = None
            return
        except self.ray.exceptions.RayError as e:
            self._lose(seat, cause(e))
            return
        seat.answer = None
        if isinstance(answer, np.ndarray):
            self._add(seat, answer)
            assert seat.part is not None
            if seat.added == len(self.total.buffer) and seat.check != seat.part[2]:
                self._lose(seat, ALTERED)
        elif not seat.busy:
            layout, bound, check, seat.small = answer
            seat.part = Layout.from_json(layout), bound, check
            if seat.small is not None and checksum(seat.small) != check:
                self._lose(seat, ALTERED)
        elif not isinstance(answer, Part):
            self.failures.append(decode(answer[1:]))
            seat.busy = []
        else:
            seat.done += seat.busy
            seat.records += answer.records
            seat.refused += answer.refused
            seat.busy = []

    def _welcome(self, seat: Seat) -> None:
        """Hear the first word of a replacement."""
        try:
            said = self.ray.get(seat.hello)
        except self.ray.exceptions.RayError as e:
            if self.pool.machines is not None and self.pool.machines.gone(seat):
                self.pool.replace(seat)     # it was on its way to a machine that was not known yet to be lost
            else:
                self._lose(seat, f"the replacement died at its start: {(last_line if seat.machine else cause)(e)}")
            return
        self.needless.discard(seat.number)
        self.pool.meet(seat, said)
        seat.made_up()

    def _wait_for(self, coming: Collection[Seat], stuck: float | None) -> None:
        """Check, where clients wait and nobody works, that somebody may still come for them.

        Raises:
            WorkerError: if replacements, and the machines of those that hold the clients' data, had their time.
            DataError: if everybody is there, and nobody has a client's data.
        """
        self.stuck = stuck
        if stuck is None:
            return
        latest = max([seat.since for seat in coming], default=stuck)
        now, machines, patience = time.monotonic(), self.pool.machines, self.pool.startup
        if machines is not None:
            if now - min(max(latest, stuck), stuck + patience) > patience:
                raise machines.missing(self.queue, self.work.round, now - stuck)
        elif not coming:
            raise DataError(f"client {self.queue[0]}: its data is on none of the {len(self.seats)} workers here; "
                            "allowed: clients whose data some worker holds; start the run on all machines that hold "
                            "data.")
        elif now - latest > patience:
            raise WorkerError(f"no Ray actor is left in round {self.work.round}: none of {len(coming)} replacements "
                              f"came up within {patience:.0f} s; {RESUME}, or raise backend.timeout")

    def _settle(self) -> None:
        """Find machines for who waits for one; where all have theirs, and nobody can work, move who can be spared.

        Raises:
            DataError: if only more actors would help.
        """
        machines = self.pool.machines
        assert machines is not None
        if not all(seat.up for seat in self.seats):
            self.pool.settle()
        elif self.stuck is not None and (move := machines.move(self.queue[0], self.seats)):
            seat, there = move
            self._again(seat)
            self.pool.replace(seat, there)

    def _lose(self, seat: Seat, why: str) -> None:
        """Replace a lost actor; what it had of this round runs again."""
        self.pool.watch.check()
        self.lost += 1
        again = [*seat.done, *seat.busy]
        event: Event = {"event": "actor lost", "round": self.work.round, "who": seat.who(), "why": why,
                        "recovery_seconds": None, "clients": len(again)}
        self.pool.happened.append(event)
        if self.lost > self.settings.replacements:
            raise WorkerError(f"{self.lost} Ray actors were lost in round {self.work.round}, allowed: "
                              f"{self.settings.replacements} (backend.replacements); the last one: {seat.who()}, "
                              f"{why}; {RESUME}")
        self._again(seat)
        self.total = SUMS[self.pool.setup.reduce]()
        for other in self.seats:
            if not other.busy:
                other.keep()
        seat.loss = event, time.monotonic()
        self.pool.replace(seat)

    def _again(self, seat: Seat) -> None:
        """Let all that a seat had of this round run again."""
        self.queue = deque(longest_first({m: self.costs[m] for m in [*seat.done, *seat.busy, *self.queue]}))
        self.needless.clear()
        seat.forget()
