"""Every process of a trial: they carry a mark in their environment, also after whoever started them died (Linux)."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

NAME = "FEDLEARN_CHAOS_TRIAL"
# Seconds in which those that are just ending may end. Two agents of Ray, whose raylet and GCS died with their driver,
# try for a minute to tell a GCS of it before they end.
GRACE = 75.0


def countable() -> bool:
    """Return whether this system shows the environment of processes."""
    return Path("/proc/self/environ").exists()


def alive(mark: str) -> dict[int, str]:
    """Return the live processes that carry a mark, with their command lines; none where they cannot be counted."""
    word, found = f"{NAME}={mark}".encode(), {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):     # it ended meanwhile, or is somebody else's
            if word in (entry / "environ").read_bytes().split(b"\0"):
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    continue
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = command[:200]
    return found


def left(mark: str, grace: float = GRACE) -> dict[int, str]:
    """Return the processes that are still alive when all had time to end."""
    deadline = time.monotonic() + grace
    while (found := alive(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def end(mark: str) -> None:
    """Kill every process that carries a mark, and those that they start meanwhile."""
    deadline = time.monotonic() + GRACE
    while (found := alive(mark)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
