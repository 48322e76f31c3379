"""The ranks that a coordinator starts on its own machine: started, and made whole again when one is lost.

The coordinator ends what is dead or frozen, and starts newcomers for the missing seats at once. The survivors keep
their process, their worker and its data, and all meet in a new group; who is lost in the meantime is replaced as well.
A seat whose newcomers cannot start stays empty until the next loss.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, NamedTuple

from ...errors import WorkerError
from ...work import Setup
from ..parcel import pack
from .children import Child, end, muster
from .group import Group
from .lost import Lost
from .rendezvous import Rendezvous, part_for

TRIES = 2   # newcomers that are started for one seat
NOBODY = "a connection between ranks"   # is what was lost, as far as anybody can tell


class Fate(NamedTuple):
    """Who was lost and why; a rank counts that was one, and a newcomer that died before it was ready does not."""

    who: str
    why: str
    counts: bool = True


class Gang:
    """The child processes of a coordinator, in the order of their ranks.

    Raises:
        ConfigError: if the port is taken.
    """

    def __init__(self, backend: Any, setup: Setup, interface: str) -> None:
        self.backend, self.setup, self.interface = backend, setup, interface
        self.hang = backend.hang or 0.0
        self.children: list[Child] = []
        self.parcels: list[Path] = []   # folders with the setup, for children that have not read it yet
        self.number = -1                # of the present group
        self.rendezvous = Rendezvous(backend.port, backend.timeout)

    def start(self, seats: Sequence[int]) -> None:
        """Start children for these seats; ``unpacked`` is to follow when they are ready.

        Raises:
            OSError: if there is no room for another process, or for the setup.
            WorkerError: if the setup cannot be sent to another process.
        """
        if not seats:
            return
        new = []
        for seat in seats:    # they import what they need while the setup is packed
            new.append(Child(seat, self.backend.threads))
            self.children.append(new[-1])
        self.children.sort(key=lambda child: child.seat)
        self.parcels.append(Path(tempfile.mkdtemp(prefix="fedlearn-")))
        parcel = self.parcels[-1] / "parcel"
        parcel.write_bytes(pack(self.setup, self.parcels[-1]))
        for child in new:
            child.tell(self.rendezvous.hello | {
                "parcel": str(parcel), "seat": child.seat, "seats": self.backend.workers,
                "interface": self.interface, "devices": self.backend.devices, "hang": self.hang,
                "parent": current_thread() is main_thread()})

    def unpacked(self) -> None:
        """Remove the setup's files, which all children have mapped: nothing is left if this process is killed."""
        while self.parcels:
            shutil.rmtree(self.parcels.pop(), ignore_errors=True)

    def form(self, device: str) -> Group:
        """Tell all children, which are ready, of a new group, and return it.

        Raises:
            Lost: if one does not come.
        """
        self.number += 1
        world = len(self.children) + 1
        for rank, child in enumerate(self.children, 1):
            child.rank = rank
            child.expect()
            child.tell({"group": self.number, "rank": rank, "world": world})
        store = part_for(self.rendezvous.server.store, self.number)
        return Group(store, 0, world, self.backend.timeout, self.interface, range(1, world), device, self.hang,
                     self.dead)

    def dead(self) -> str:
        """Say which children have ended, if one has."""
        return "; ".join(child.fate() for child in self.children if child.process.poll() is not None)

    def reform(self, lost: Lost, group: Group, allowed: int, fates: list[Fate]) -> Group | None:
        """Make the gang whole after its group was lost, and return the new group; ``fates`` takes in who was lost.

        None is returned if more than ``allowed`` ranks were.
        """
        device, tried = group.device, Counter[int]()
        self._bury(lost, fates)
        group.close(healthy=False)
        while True:
            for child in self.children:
                if not child.ready:
                    child.expect()
                    child.tell({"broken": self.number})
            while True:
                if sum(fate.counts for fate in fates) > allowed:
                    return None
                self._fill(tried, fates)
                if (failed := muster(self.children, self.backend.timeout, self.hang)) is None:
                    break
                child, why = failed
                fates.append(Fate(child.who, f"{why} (while it started)" if child.new else why, not child.new))
                self._remove(child)
            self.unpacked()
            # What a rank says of itself; if nobody does, and nobody died, it was the network.
            fates += [Fate(child.who, child.why) for child in self.children if child.own]
            if not fates:
                fates.append(Fate(NOBODY, str(lost)))
            if sum(fate.counts for fate in fates) > allowed:
                return None
            try:
                return self.form(device)
            except Lost as e:
                lost = e.bare()
            known = len(fates)
            self._bury(lost, fates)
            if len(fates) == known:
                fates.append(Fate(NOBODY, str(lost)))

    def close(self, healthy: bool) -> None:
        """End all children, and let go of everything."""
        end(self.children, healthy)
        self.children.clear()
        self.unpacked()
        self.rendezvous.close()

    def _fill(self, tried: Counter[int], fates: list[Fate]) -> None:
        """Start newcomers for the empty seats, unless that was tried too often."""
        taken = {child.seat for child in self.children}
        seats = [seat for seat in range(1, self.backend.workers) if seat not in taken and tried[seat] < TRIES]
        tried.update(seats)
        try:
            self.start(seats)
        except (OSError, WorkerError) as e:
            for child in [child for child in self.children if child.seat in seats]:
                self._remove(child)
            fates.append(Fate("a newcomer", f"it could not be started: {e}", False))

    def _bury(self, lost: Lost, fates: list[Fate]) -> None:
        """End the children that a group was lost with, and take the dead away."""
        for child in list(self.children):
            how = child.end(0.0)
            if how or child.rank in lost.ranks:
                fates.append(Fate(child.who, how or str(lost)))
                self._remove(child)

    def _remove(self, child: Child) -> None:
        child.kill()
        child.close()
        self.children.remove(child)
