"""Heartbeats in the rendezvous store: who is alive, and who is at work and gets nowhere.

A rank beats from a thread of its own, also while it works long. A beat carries for how many seconds the rank has been
busy without a local step, and, once that is long, where it stands: a rank whose process lives and whose work does not
shows only there.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from ...worker.local import Local

NOTABLE = 0.25   # of the time after which a rank is taken for hung, from which its beats say where it stands


class Toil:
    """Whether this rank is at work on clients, on which, and since when it got nowhere.

    ``still`` counts the seconds without a step, as far as ``tick`` was called often: not those of a process that was
    suspended.
    """

    def __init__(self, worker: Local) -> None:
        self.worker, self.thread = worker, threading.get_ident()
        self.round, self.share = 0, 0
        self.clients: Sequence[int] = ()
        self.busy, self.still = False, 0.0
        self.seen, self.ticked = (0, 0), time.monotonic()

    @contextmanager
    def on(self, round: int, clients: Sequence[int]) -> Iterator[None]:
        """Be at work for as long as this lasts."""
        self.thread, self.round, self.clients = threading.get_ident(), round, clients
        self.share += 1
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def tick(self, every: float) -> float:
        """Return for how long there was no progress; to be called about ``every`` so many seconds."""
        now, seen = time.monotonic(), (self.share, self.worker.steps_done)
        passed, self.ticked = now - self.ticked, now
        if not self.busy or seen != self.seen:
            self.seen, self.still = seen, 0.0
        elif passed < 3 * every + 1:
            self.still += passed
        return self.still

    def where(self) -> str:
        """Say on which client this rank is at work, and in which line."""
        frame = sys._current_frames().get(self.thread)
        if frame is None:
            return self._on(self.clients)
        line = f"in {frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
        while frame is not None:
            if frame.f_code is Local._alone.__code__:
                return f"{self._on([frame.f_locals['client']])} {line}"
            if frame.f_code is Local._stacked.__code__:
                return f"{self._on(frame.f_locals['ids'])} {line}"
            frame = frame.f_back
        return f"{self._on(self.clients)} {line}"

    @staticmethod
    def _on(clients: Sequence[int]) -> str:
        named = ", ".join(map(str, clients[:10])) + ", ..." * (len(clients) > 10)
        return f"on client{'s' * (len(clients) > 1)} {named}"


class Pulse:
    """This rank's heartbeat, and what it hears of the ranks that it watches.

    ``hang`` is after how many seconds without progress a rank at work is taken for hung (0: never); ``toil`` is this
    rank's own work; ``each`` is called at every beat, ``gone`` when the store is, both in the heartbeat's thread.
    """

    def __init__(self, store: Any, rank: int, interval: float, hang: float) -> None:
        self.store, self.rank, self.interval, self.hang = store, rank, interval, hang
        self.toil: Toil | None = None
        self.each: Callable[[], None] | None = None
        self.gone: Callable[[], None] | None = None
        self.stop = Event()
        self.thread = Thread(target=self._beat, name="fedlearn-heartbeat", daemon=True)
        store.set(f"beat/{rank}", json.dumps([0, 0.0, ""]))

    def start(self) -> None:
        """Beat from here on."""
        self.thread.start()

    def close(self) -> None:
        """Beat no more."""
        self.stop.set()
        if self.thread.is_alive():
            self.thread.join(self.interval + 5)
        self.store = self.toil = self.each = self.gone = None

    def _beat(self) -> None:
        store, n = self.store, 0
        while not self.stop.wait(self.interval):
            n += 1
            toil, each = self.toil, self.each
            still = toil.tick(self.interval) if toil else 0.0
            where = toil.where() if toil and self.hang and still > NOTABLE * self.hang else ""
            try:
                store.set(f"beat/{self.rank}", json.dumps([n, still, where]))
                if each:
                    each()
            except RuntimeError:
                # The store went with rank 0, which the next collective notices, if there is one soon.
                if (gone := self.gone) is not None and not self.stop.is_set():
                    gone()
                return


class Ear:
    """What this rank hears of others' heartbeats; ``interval`` is about how often it listens."""

    def __init__(self, store: Any, ranks: Sequence[int]) -> None:
        self.store, self.ranks = store, list(ranks)
        self.seen: dict[int, tuple[int, float]] = {}
        self.still: dict[int, tuple[float, str]] = {}
        self.looked = time.monotonic()

    def silent(self, longer: float, interval: float) -> list[int]:
        """Return the ranks that have been silent for longer than so many seconds."""
        now = time.monotonic()
        if now - self.looked > 3 * interval:
            self.seen.clear()  # this process itself was suspended, or busy: the others may not have been
        self.looked = now
        for rank in self.ranks:
            n, still, where = json.loads(self.store.get(f"beat/{rank}"))
            self.still[rank] = still, where
            if rank not in self.seen or self.seen[rank][0] != n:
                self.seen[rank] = n, now
        return [rank for rank in self.ranks if now - self.seen[rank][1] > longer]

    def hung(self, longer: float) -> dict[int, str]:
        """Return the ranks that got nowhere for so many seconds (0: never) when last heard, and where they stand."""
        return {rank: where for rank, (still, where) in self.still.items() if longer and still >= longer}
