"""Which machine an actor goes to, where each machine has data that the others have not.

The actors are spread over the machines. One that is lost comes back on its own machine or, where that is gone, on one
that has no actor yet: to Ray a machine that comes back is a new one, and whose data it has only its actor can say.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ...contracts import Task
from ...errors import DataError, WorkerError
from ..holders import Runs
from .cluster import LOOK, RESUME
from .seat import Seat


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster: ``node`` is Ray's name for it, a new one each time it joins."""

    node: str
    address: str
    room: int = 1   # actors that it has CPUs for
    gpus: int = 0


class Machines:
    """The machines of a joined cluster, and what is known of the data on them."""

    def __init__(self, api: Any, task: Task, threads: int) -> None:
        self.api, self.threads, self.common = api, threads, common(task)
        self.held: dict[str, tuple[Machine, Runs | None]] = {}  # node -> whose data it has; None: everybody's
        self.instead: dict[str, str] = {}   # a lost node -> the one that its actors went to
        self.looked = 0.0

    def there(self) -> dict[str, Machine]:
        """Return the machines that are up and have CPUs for an actor, by node."""
        found = [Machine(n["NodeID"], n["NodeManagerAddress"], int(n["Resources"].get("CPU", 0) // self.threads),
                         int(n["Resources"].get("GPU", 0))) for n in self.api.nodes() if n["Alive"]]
        return {m.node: m for m in sorted(found, key=lambda m: (m.address, m.node)) if m.room}

    def gone(self, seat: Seat) -> bool:
        """Say whether the machine of a seat is down."""
        return _node(seat) not in self.there()

    def due(self) -> bool:
        """Say whether it is time for another look."""
        now = time.monotonic()
        if now - self.looked < LOOK:
            return False
        self.looked = now
        return True

    def start(self, workers: int, timeout: float) -> list[Machine]:
        """Return where the first actors go; wait for machines until there is room for all actors.

        Raises:
            WorkerError: if there is not before the time is over.
        """
        began = time.monotonic()
        while True:
            there = list(self.there().values())
            if (room := sum(m.room for m in there)) >= workers:
                return spread(there, workers)
            if time.monotonic() - began > timeout:
                raise WorkerError(f"the Ray cluster has room for {room} of {workers} actors with {self.threads} CPUs "
                                  f"each, on {len(there)} machines, after {timeout:g} s; start those that hold the "
                                  "data, use fewer backend.workers, or raise backend.timeout")
            time.sleep(LOOK)

    def meet(self, seat: Seat, theirs: str) -> None:
        """Note whose data the machine of a seat has.

        Raises:
            DataError: if it knows the federation as another.
        """
        if theirs != self.common:
            raise DataError(f"{seat.who()}: found clients of other sizes, or samples of another shape or type, than "
                            "the coordinator knows of; allowed: the same federation.json on every machine.")
        assert seat.machine is not None
        self.held.pop(seat.machine.node, None)      # the latest stands last
        self.held[seat.machine.node] = seat.machine, seat.holds

    def place(self, seat: Seat, seats: Collection[Seat], there: Mapping[str, Machine]) -> Machine | None:
        """Return where the next actor of a seat goes, None as long as there is no such machine."""
        assert seat.machine is not None
        node, address = seat.machine.node, seat.machine.address
        while node not in there and node in self.instead:
            node = self.instead[node]       # all that were on a machine stay together
        if node in there:
            return there[node]
        free = self._free(seats, there)
        if not free:
            return None
        best = min(free, key=lambda m: m.address != address)
        self.instead[node] = best.node
        return best

    def move(self, client: int, seats: Sequence[Seat]) -> tuple[Seat, Machine] | None:
        """Return a seat that can be spared, and the machine without any that may have a client's data instead.

        Raises:
            DataError: if there is such a machine, and no seat to spare.
        """
        free = self._free(seats, self.there(), client)
        if not free:
            return None
        count = Counter(_node(seat) for seat in seats)
        for seat in seats:
            if seat.holds is not None and not seat.holds.firsts or count[_node(seat)] > 1:
                return seat, free[0]
        raise DataError(f"client {client}: its data is on none of the {len(seats)} machines that have an actor; "
                        f"machines without one: {_listed(m.address for m in free)}; allowed: an actor on every machine "
                        f"that holds data, as with backend.workers={len(seats) + len(free)}.")

    def missing(self, clients: Sequence[int], round: int, waited: float) -> WorkerError:
        """Return what to raise when the machine that holds clients does not come back."""
        client, others = clients[0], f" (and that of {len(clients) - 1} others)" if len(clients) > 1 else ""
        there = _listed(m.address for m in self.there().values())
        held = [machine.address for machine, holds in self.held.values() if holds is None or client in holds]
        was = (f"was on the machine at {held[-1]}, which is lost" if held else "is on no machine that had an actor")
        return WorkerError(f"client {client}: its data{others} {was}, and nobody who came within {waited:.0f} s in "
                           f"round {round} has it; machines that are up: {there}; start the missing one again, then "
                           f"{RESUME}")

    def _free(self, seats: Collection[Seat], there: Mapping[str, Machine], client: int | None = None) -> list[Machine]:
        """Return the machines without an actor that may have a client's data, or anybody's."""
        taken = {_node(seat) for seat in seats if seat.actor is not None}

        def may_have(m: Machine) -> bool:
            _, holds = self.held.get(m.node, (m, None))
            return holds is None or (bool(holds.firsts) if client is None else client in holds)

        return [m for m in there.values() if m.node not in taken and may_have(m)]


def spread(machines: Sequence[Machine], workers: int) -> list[Machine]:
    """Return a machine for each worker: one on each, then again from the first, as long as there is room."""
    taken: Counter[str] = Counter()
    chosen = []
    for _ in range(workers):
        chosen.append(min(machines, key=lambda m: (taken[m.node] >= m.room, taken[m.node])))
        taken[chosen[-1].node] += 1
    return chosen


def common(task: Task) -> str:
    """Return a digest of what all machines must know alike: the clients' sizes, and what a sample looks like."""
    looks = getattr(getattr(task, "store", None), "looks", None)
    return sha256(task.sizes.tobytes() + repr(looks).encode()).hexdigest()


def _node(seat: Seat) -> str:
    assert seat.machine is not None
    return seat.machine.node


def _listed(addresses: Any) -> str:
    found = sorted(set(addresses))
    return ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "") or "none"
