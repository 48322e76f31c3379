"""Rank 0 of an open group: it hands rounds out, adds them up, and keeps its own ranks alive.

Ranks that it started itself are replaced when they are lost, and the round runs again: local work is a pure function
and client states are versioned, so the bits are the same and nothing counts twice. Ranks that torchrun started are
torchrun's to restart: there a lost rank ends the run at every rank.
"""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor

from ...errors import WorkerError
from ...work import SUMS, Event, Reduced, Setup, Work, cost
from ...worker.worker import Worker
from ..balance import balance
from ..device import unlike, words
from .bundle import room_for
from .children import Child
from .gang import Fate, Gang
from .group import SETTLED, Group
from .lost import Lost
from .pace import Pace
from .pulse import Toil
from .share import Share, conduct, to_header
from .store import Store
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .backend import Torchrun

log = logging.getLogger("fedlearn")

RESUME = "continue the run with `fedlearn resume`"


class Coordinator:
    """Rank 0 of an open group, with the gang that it started (if it did)."""

    def __init__(self, backend: Torchrun, group: Group, worker: Worker, gang: Gang | None, folder: Path,
                 store: Store | None = None) -> None:
        self.store = store    # where all met, if this rank serves it for ranks that it did not start
        self.backend, self.group, self.worker, self.gang = backend, group, worker, gang
        self.room = room_for(0)   # of the ranks' answers
        self.largest = int(worker.setup.task.sizes.max())
        self.setup: Setup = worker.setup
        self.rank = 0
        self.healthy = True
        self.happened: list[Event] = []
        self.pace = Pace(backend.speeds, backend.ranks(), backend.dedicated)
        sums = "NCCL" if group.nccl is not None else "gloo"
        log.info("%d rank%s: %s; sums by %s", group.world, "s" * (group.world > 1), words(group.devices), sums)
        if unlike(group.devices):   # the last bits of the result depend on who works on what
            self.happened.append({"event": "unlike devices", "devices": list(map(str, group.devices)), "sums": sums,
                                  "speeds": list(self.pace.speeds)})
        self.toil = Toil(worker)
        # Also when the caller forgets to close.
        self.clean = weakref.finalize(self, _clean, gang, folder)
        self.watchdog: Watchdog | None = None
        if backend.hang:
            self.watchdog = Watchdog(self.toil, backend.hang, self.clean.__call__)
            weakref.finalize(self, self.watchdog.stop.set)

    @property
    def seats(self) -> list[int]:
        """Return every rank's seat: that of one that was started from here stays, if others are lost, what it was."""
        return [0, *(child.seat for child in self.gang.children)] if self.gang else list(range(self.group.world))

    @property
    def children(self) -> list[Child]:
        """Return the ranks that were started from here."""
        return self.gang.children if self.gang else []

    def map_reduce(self, work: Work) -> Reduced:
        """Run the clients on all ranks, longest work first, and sum their uploads.

        Raises:
            ClientError: if a client's work failed; the group can go on with other work.
            WorkerError: if a rank is gone that is not to be replaced; the group can only be closed.
        """
        if not work.clients:
            return Reduced(SUMS[self.setup.reduce](), [])
        if not self.healthy:
            raise WorkerError("this group of ranks is broken or closed; open the backend anew")
        self.healthy = False  # until all ranks stand at the same place again
        lost = 0
        while True:
            try:
                result, self.room = self._round(work)
                break
            except Lost as e:
                why = e.bare()   # the traceback would keep the group's connections
            lost += self._mend(why, work, lost)
        self.healthy = True
        if isinstance(result, Exception):
            raise result
        return result

    def _round(self, work: Work) -> tuple[Reduced | Exception, int]:
        """Return what came of a round on all ranks, or the error to raise, and the room that answers take.

        Raises:
            Lost: if a rank is gone.
        """
        sizes, seats = self.setup.task.sizes, self.seats
        costs = {m: cost(sizes, m, work.local) for m in work.clients}
        shares = balance(costs, self.pace.of(seats), self.group.holds)
        header = to_header(work, shares, sizes, self.largest) | {"room": self.room, "wire": self.backend.wire}
        self.group.send(header, work.broadcast)
        with self.toil.on(work.round, shares[0]):
            mine = Share(self.group, self.worker, work, shares[0], self.backend.wire)
        result, room, did = conduct(mine, work, shares, self.room)
        # In a prelude clients do something else than their cost says.
        if did and not work.prelude and self.pace.learn({
                seat: (sum(costs[m] for m in clients), seconds)
                for seat, (clients, seconds) in zip(seats, did, strict=True)}):
            self.happened.append({"event": "speeds", "round": work.round, "speeds": list(self.pace.speeds)})
        return result, room

    def _mend(self, why: Lost, work: Work, before: int) -> int:
        """Replace the ranks that the group was lost with, ``before`` of which were in this round; return how many.

        Raises:
            WorkerError: if they are not to be replaced.
        """
        if self.gang is None or self.group.world == 1:
            gone = str(why) if why.ranks or why.own else f"a rank is gone ({why}; torchrun's own output names it)"
            raise WorkerError(f"{gone} in round {work.round}; {RESUME}")
        began, allowed, fates = perf_counter(), self.backend.replacements, list[Fate]()
        group = self.gang.reform(why, self.group, allowed - before, fates)
        seconds = None if group is None else round(perf_counter() - began, 3)
        ranks = len(self.gang.children) + 1
        for who, reason, _ in fates:
            self.happened.append({"event": "rank lost", "round": work.round, "who": who, "why": reason,
                                  "recovery_seconds": seconds, "ranks": ranks})
        many = sum(fate.counts for fate in fates)
        if group is None:
            last = [fate for fate in fates if fate.counts][-1]
            bound = (f"{before + many} ranks were lost in round {work.round}, allowed: {allowed} "
                     "(backend.replacements); the last one: ") if allowed else ""
            raise WorkerError(f"{bound}{last.who}: {last.why}, in round {work.round}; {RESUME}")
        if ranks < self.group.world or ranks < self.backend.workers:
            self.happened.append({"event": "fewer ranks", "round": work.round, "ranks": ranks,
                                  "wanted": self.backend.workers})
        self.group, self.room = group, room_for(0)
        if self.backend.dedicated and ranks == 1:
            raise WorkerError(f"no rank is left but the coordinator, which works on no client; {RESUME}")
        return many

    def events(self) -> list[Event]:
        """Return what happened to the ranks since the last call."""
        happened, self.happened = self.happened, []
        return happened

    def commit(self, states: Sequence[tuple[int, int]], keep: Sequence[tuple[int, int]] | None = None) -> None:
        """Given ``keep``, delete all client states but these and those; they are on disk already."""
        if self.worker.states is not None:
            self.worker.states.flush(states)
            if keep is not None:
                self.worker.states.prune([*states, *keep])

    def close(self, final: Mapping[str, Tensor] | None = None) -> None:
        """End all ranks; safe to call twice, and after any error.

        ``final`` is what ``serve`` returns at ranks above 0.
        """
        if not self.clean.alive:
            return
        healthy, self.healthy = self.healthy, False
        if self.watchdog is not None:
            self.watchdog.stop.set()
        try:
            if healthy:
                self.group.send({"final": final is not None}, final or {})
                self.group.barrier()
        except BaseException as e:
            healthy = False
            if not isinstance(e, Lost):
                raise
        finally:
            if self.gang is not None:
                self.gang.close(healthy)
            # Killed children fail every operation that waited for them; others' ranks may be frozen.
            self.group.close(healthy, SETTLED if self.gang is not None else 0.0)
            if self.store is not None:
                self.store.close()
            self.clean()


def _clean(gang: Gang | None, folder: Path) -> None:
    if gang is not None:
        gang.close(healthy=False)
    shutil.rmtree(folder, ignore_errors=True)
