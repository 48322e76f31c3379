"""Private data on one machine: every worker process takes a folder that nobody alive has, as if it were its own."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from problems import blobs

from fedlearn.data.deal import deal
from fedlearn.data.held import HeldStore
from fedlearn.tasks.private import PrivateTask


class Claimed(HeldStore):
    """What a worker process holds: a folder beside this one that no other living process has, or else this one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return claim, (str(self.folder.parent),)


def claim(out: str) -> HeldStore:
    """Return what is in the first folder out/1, out/2, ... whose owner is dead, as out/owner1, ... tells."""
    folders = sorted(Path(out).glob("[0-9]"))
    with Path(out, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder in folders:
            owner = Path(out, f"owner{folder.name}")
            if not owner.exists() or not alive(int(owner.read_text())):
                owner.write_text(str(os.getpid()))
                return HeldStore.open(folder)
    return HeldStore.open(Path(out, "coordinator"))


def alive(pid: int) -> bool:
    """Say whether a process is there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def private(out: Path, machines: int) -> PrivateTask:
    """Split ``blobs`` over so many folders, and return the task as the coordinator has it."""
    task = blobs()
    deal(task.store, machines, out, 3)
    return PrivateTask(task.model, task.loss, Claimed.open(out / "coordinator"), task.test)
