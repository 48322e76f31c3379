"""The machine that a number was measured on, and whether anything else ran there meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def about() -> dict[str, Any]:
    """Return processor, cores, memory, system and date."""
    model = platform.processor() or platform.machine()
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": cores, "memory_gib": round(memory, 1), "system": platform.platform(),
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}


def busy_cores(seconds: float = 0.1) -> float:
    """Return how many cores were busy during a short wait (0 where the system does not say)."""
    try:
        before, began = _busy_ticks(), time.perf_counter()
        time.sleep(seconds)
        return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - began)
    except OSError:
        return 0.0


def _busy_ticks() -> int:
    user, nice, system, _, _, irq, softirq, steal = map(int, (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal


class Patience:
    """Waits until the machine is idle, ``each`` seconds at most at a time and ``total`` in all.

    On a machine that never becomes idle a benchmark then still ends; what it measured is marked.
    """

    def __init__(self, total: float, each: float = 10.0) -> None:
        self.left, self.each = total, each

    def wait(self, most_busy: float) -> float:
        """Wait until at most ``most_busy`` cores are busy; return how many are."""
        began = time.perf_counter()
        while (busy := busy_cores()) > most_busy and time.perf_counter() - began < min(self.each, self.left):
            time.sleep(0.2)
        if busy > most_busy or time.perf_counter() - began > 0.2:
            self.left -= time.perf_counter() - began
        return busy


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    found = [pid]
    for parent in found:
        for path in (PROC / str(parent) / "task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:  # it ended meanwhile
                continue
    return found


def memory_mb(pid: int) -> tuple[float, float]:
    """Return (memory, mapped) in MB (10^6 bytes), summed over a process and all that it started.

    Memory is anonymous and shared memory, which only the processes' end gives back; mapped are pages of files,
    libraries and data, which the system drops when it needs room. A page that n processes share counts as 1/n of
    it for each (PSS). Where the system does not tell them apart all counts as memory.
    """
    memory = mapped = 0
    for each in descendants(pid):
        try:
            lines = (PROC / str(each) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        values = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        files = values.get("Pss_File", 0)
        memory += values.get("Pss", 0) - files
        mapped += files
    return memory * 1024 / 1e6, mapped * 1024 / 1e6


def commit() -> str:
    """Return the commit of this checkout, and whether it was changed since."""
    try:
        name, changed = (subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True,
                                        check=True).stdout.strip()
                         for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"]))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + " with local changes" * bool(changed)
