"""Algorithms and tasks that misbehave; a module, so that worker processes can import them."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from problems import blobs

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.contracts import Msg, Oracle, StepInfo, Tree
from fedlearn.tasks.supervised import SupervisedTask


def leave() -> None:
    """End the process; a function of our own, since other libraries wrap ``sys.exit`` itself."""
    sys.exit(3)


@dataclass(frozen=True)
class Signalled(FedAvg):
    """Sends itself ``signal`` in a worker's process, once: whoever removes the file ``marker`` does."""

    marker: str = ""
    coordinator: int = 0
    signal: int = signal.SIGKILL

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        if info.round == 1 and info.k == 1 and os.getpid() != self.coordinator:
            try:
                Path(self.marker).unlink()
            except FileNotFoundError:
                pass
            else:
                os.kill(os.getpid(), self.signal)
        return super().local_step(y, b, c, oracle, info)


@dataclass(frozen=True)
class Leaves(FedAvg):
    """Ends the process that it is unpickled in."""

    def __reduce__(self) -> tuple[Any, ...]:
        return leave, ()


@dataclass(frozen=True)
class Sleeps(FedAvg):
    """Never comes out of its pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return time.sleep, (600,)


@dataclass(frozen=True)
class Scarce(FedAvg):
    """Ends the process that it is unpickled in, as soon as the file ``marker`` is there."""

    marker: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return scarce, (self.marker,)


def scarce(marker: str) -> Scarce:
    """Return the algorithm where the file is not there."""
    if Path(marker).exists():
        leave()
    return Scarce(marker=marker)


@dataclass(frozen=True)
class Slow(FedAvg):
    """Takes longer over a step than silent workers are waited for."""

    seconds: float = 0.0

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        if info.k == 0:
            time.sleep(self.seconds)
        return super().local_step(y, b, c, oracle, info)


@dataclass(frozen=True)
class Writes(FedAvg):
    """Changes what was broadcast, in place."""

    def local_init(self, b: Msg, c: Tree) -> Tree:
        return b["x"]


@dataclass(frozen=True)
class Looks(FedAvg):
    """Reads all of what was broadcast, and writes down which memory of its process is a shared file, and how much."""

    folder: str = ""

    def local_finish(self, y: Tree, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        assert b["x"].isfinite().all()
        lines = Path("/proc/self/smaps").read_text().splitlines()
        starts = [i for i, line in enumerate(lines) if "/memfd:fedlearn-" in line]
        seen = [" ".join([lines[i].split()[4], *(line for line in lines[i:i + 25]
                                                 if line.startswith(("Size:", "Rss:", "Anonymous:")))]) for i in starts]
        Path(self.folder, f"{os.getpid()}").write_text("\n".join(seen))
        return super().local_finish(y, b, c, info)


@dataclass(frozen=True)
class Huge(FedAvg):
    """Sends uploads of which one fits the exact sum and several do not."""

    size: float = 1.5e6

    def local_finish(self, y: Tree, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return {"dx": torch.full_like(y, self.size)}, c


def poisoned(client: int) -> SupervisedTask:
    """``blobs`` with a NaN among the features of one client."""
    task = blobs()
    task.store.client(client)[0][0, 0] = torch.nan
    return task
