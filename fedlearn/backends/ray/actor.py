"""What runs in a Ray actor: a worker, and what it adds up of a round."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import faults
from ...work import SUMS, Part, Sum, Work
from ...worker.worker import Worker
from ..device import Device, moved, placed
from ..gather import check_untouched, encode, versions
from ..holders import runs
from ..parcel import unpack
from .machines import common
from .seat import checksum

SMALL = 1 << 16  # entries up to which a partial sum is handed over in one piece, with what is to be said of it
BREATH = 0.05    # seconds after which an answer has left an actor: from then on it is idle


class Actor:
    """What runs in an actor: a worker, and the partial sum of the round that it works in."""

    def __init__(self, parcel: bytes, fetch: Callable[[Any], Any], kind: str = "cpu") -> None:
        self.device = "cpu" if kind == "cpu" else f"{kind}:0"     # the only one that Ray lets it see
        self.worker = Worker(placed(unpack(parcel), self.device), through=True)
        self.fetch = fetch
        self.token, self.round = "", 0
        self.work: Work | None = None
        self.sum: Sum = SUMS[self.worker.setup.reduce]()
        self.corrupt = False
        self.idle: Thread | None = None

    def hello(self) -> tuple[int, Device, list[list[int]] | None, str]:
        """Answer, as soon as the actor is there: the number of its process, its device, and whose data it has.

        That is None for everybody's. With private data it is also a digest of what all machines must know alike.
        """
        task = self.worker.setup.task
        held = runs(task)
        return os.getpid(), Device.of(self.device), held, "" if held is None else common(task)

    def alive(self) -> int:
        """Answer, also while it works, with the number of local steps that it has begun."""
        return self.worker.steps_done

    def run(self, token: str, round: Sequence[Any], clients: Sequence[int]) -> Part | list:
        """Run clients of a round; ``round`` holds (work without vectors, vectors), or a reference to it.

        Return what was done of it, or what ``encode`` makes of the error.
        """
        # Threads of an actor each have torch's own setting.
        torch.set_num_threads(self.worker.setup.threads)
        if self.idle is not None:
            self.idle.join()
        if token != self.token:
            self.token, self.work, self.sum = token, None, SUMS[self.worker.setup.reduce]()
        if self.work is None:
            work, arrays = round[0] if isinstance(round[0], tuple) else self.fetch(round[0])
            here = replace(work, broadcast={name: _in_place(array) for name, array in arrays.items()})
            self.work = moved(here, self.device)
            self.round = work.round
        try:
            faults.at("receive", self.work.round)
            before = versions(self.work)
            part = self.worker.reduce(self.work, clients, self.sum)
            check_untouched(before, self.work, clients)
            fault = faults.at("upload", self.work.round)
            self.corrupt |= fault is not None and fault.kind == "corrupt"
            return part
        except faults.Dropped:
            os._exit(1)     # its connection ends with it, as Ray sees it
        except Exception as e:
            return ["error", *encode(e, f"a Ray actor (process {os.getpid()})")]

    def collect(self, token: str) -> tuple[Any, float, int, np.ndarray | None]:
        """Return the layout's parts, the bound and the checksum of a round's partial sum, and all of it if small."""
        assert token == self.token and self.sum.layout is not None
        faults.at("reduce", self.round)
        self.work = None
        self.sum.carry()
        values = self.sum.buffer.cpu().numpy()
        small = len(values) <= SMALL
        if small:
            self._rest()
        return self.sum.layout.parts, self.sum.bound, checksum(values), self._hand_over(values) if small else None

    def piece(self, token: str, start: int, length: int) -> np.ndarray:
        """Return so many entries of a round's partial sum, which stays here until the next round."""
        assert token == self.token
        if start + length >= len(self.sum.buffer):
            self._rest()
        return self._hand_over(self.sum.buffer[start:start + length].cpu().numpy())

    def _hand_over(self, values: np.ndarray) -> np.ndarray:
        if self.corrupt:
            values = values.copy()
            values.view(np.uint8)[len(values) // 2] ^= 1
        return values

    def _rest(self) -> None:
        """Be idle once the answer has left, where somebody rehearses failures."""
        if faults.armed is not None:
            self.idle = Thread(target=_idle, args=(self.round,), daemon=True)
            self.idle.start()


def _idle(round: int) -> None:
    time.sleep(BREATH)
    faults.at("idle", round)


def _in_place(array: np.ndarray) -> Tensor:
    """Return a read-only array as a tensor on the same memory; its ``_version`` tells of writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing stops them
        return torch.from_numpy(array)
