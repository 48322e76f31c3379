"""Faults on purpose: what a rehearsal of failures injects, and the points of a run where it can.

The code calls ``at(point, round)`` at the points below. That does nothing unless a schedule is armed, which only
``fedlearn chaos`` and tests do: the schedule travels with the setup, never through the environment. Every fault fires
once, whoever gets there first, also after a restart: whoever creates its marker in ``folder`` fires it.

    point        where it is                                       process
    receive      a worker has the command of a round                worker
    train        a worker is about to take a local step             worker
    upload       a worker did its share and is about to answer      worker
    reduce       partial sums are about to be added up              worker
    idle         a worker answered and waits for the next command   worker
    between      between two rounds                                 coordinator
    checkpoint   a checkpoint is written but not yet in its place   coordinator
    commit       the checkpoint is in its place, old ones are not yet removed   coordinator
    disk         a checkpoint is about to be written                coordinator
    line         a line about a round is about to be written        coordinator

In one process the coordinator is the worker, too. A worker's fault never fires in the coordinator's process unless
``anywhere`` is set. A ``cut`` only holds a worker up for some seconds: the link is cut by whoever made the network,
when the marker is there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import ConfigError, in_range, one_of

WORKER = ("receive", "train", "upload", "reduce", "idle")
COORDINATOR = ("between", "checkpoint", "commit", "disk", "line")
# kind -> points at which it makes sense
KINDS = {"kill": (*WORKER, "between", "checkpoint", "commit"), "freeze": WORKER, "hang": ("train",), "slow": WORKER,
         "drop": ("upload",), "corrupt": ("upload",), "full": ("disk", "line"), "cut": ("train",)}


class Dropped(Exception):
    """What a worker does with an answer that is to get lost: its connection ends with it."""


@dataclass(frozen=True)
class Fault:
    """One fault: what happens, at which point of which round (from 0), and for how many seconds (slow, hang, cut)."""

    kind: str
    point: str
    round: int
    seconds: float = 1.0
    anywhere: bool = False

    def __post_init__(self) -> None:
        if str(self.kind) not in KINDS:
            raise ConfigError("faults.kind", self.kind, one_of(KINDS, str(self.kind)))
        points = KINDS[self.kind]
        if self.point not in points:
            raise ConfigError("faults.point", self.point, f"with {self.kind}, {one_of(points, str(self.point))}")
        in_range("faults.round", self.round, least=0, whole=True)
        in_range("faults.seconds", self.seconds, above=0)
        if not isinstance(self.anywhere, bool):
            raise ConfigError("faults.anywhere", self.anywhere, "true or false")


@dataclass(frozen=True)
class Faults:
    """A schedule of faults; ``folder`` holds the markers of those that fired."""

    schedule: tuple[Fault, ...]
    folder: Path

    def fire(self, point: str, round: int) -> Fault | None:
        """Return the fault that is due here and has not fired yet, after noting when it did."""
        for i, fault in enumerate(self.schedule):
            if fault.point != point or fault.round != round:
                continue
            if point in WORKER and leading and not fault.anywhere:
                continue
            try:
                fd = os.open(self.folder / f"fault-{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                continue
            with os.fdopen(fd, "w") as file:
                file.write(f"{time.time()} {os.getpid()}\n")
            return fault
        return None

    def fired(self) -> dict[int, tuple[float, int]]:
        """Return by number in the schedule when (seconds since the epoch) and in which process a fault fired."""
        found = {}
        for i in range(len(self.schedule)):
            path = self.folder / f"fault-{i}"
            if path.exists() and (words := path.read_text().split()):
                found[i] = float(words[0]), int(words[1])
        return found

    def about(self) -> list[dict[str, object]]:
        """Return the schedule as JSON can hold it."""
        return [asdict(fault) for fault in self.schedule]


def read(given: Mapping[str, Any]) -> Faults:
    """Return the schedule that a configuration describes: ``{folder: ..., schedule: [{kind: ..., point: ...}, ...]}``.

    Raises:
        ConfigError: naming the key, and the fault by its number, if it is not one.
    """
    for key in given:
        if key not in ("folder", "schedule"):
            raise ConfigError(f"faults.{key}", given[key], one_of(("folder", "schedule"), str(key)))
    folder, listed = given.get("folder"), given.get("schedule")
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise ConfigError("faults.folder", folder, "a folder that exists, for the marks of the faults that fired")
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise ConfigError("faults.schedule", listed, "a list, each entry a section with keys")
    return Faults(tuple(_one(entry, f"faults.schedule.{i}") for i, entry in enumerate(listed)),
                  Path(folder).absolute())


def _one(given: Mapping[str, Any], key: str) -> Fault:
    known = {field.name: field.default for field in fields(Fault)}
    for name in given:
        if name not in known:
            raise ConfigError(f"{key}.{name}", given[name], one_of(known, str(name)))
    for name, default in known.items():
        if default is MISSING and name not in given:
            raise ConfigError(f"{key}.{name}", "nothing", "a value", "It has no default.")
    try:
        return Fault(**given)
    except ConfigError as e:
        raise ConfigError(f"{key}.{e.key.removeprefix('faults.')}", e.found, e.allowed, e.hint) from None


armed: Faults | None = None
leading = False     # whether this is the coordinator's process


def arm(faults: Faults | None) -> None:
    """Let a schedule, or none, hold in this process."""
    global armed
    armed = faults


@contextmanager
def lead(faults: Faults | None) -> Iterator[None]:
    """Be the coordinator's process for as long as this lasts."""
    global leading
    leading = True
    arm(faults)
    try:
        yield
    finally:
        leading = False
        arm(None)


def at(point: str, round: int) -> Fault | None:
    """Do what is scheduled for this point of a round.

    ``corrupt`` is the caller's to do: it is returned.

    Raises:
        OSError: no space left on device, for ``full``.
        Dropped: for ``drop``.
    """
    if armed is None:
        return None
    fault = armed.fire(point, round)
    if fault is None:
        return None
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow" | "hang" | "cut":
            time.sleep(fault.seconds)
        case "full":
            raise OSError(28, "No space left on device")
        case "drop":
            raise Dropped(f"an answer of round {round}")
    return fault
