"""A seat: an actor, what it has of a round, what it is doing, and whether it is alive."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ClientError
from ...reducers.layout import Layout
from ...work import Event, Record
from ..holders import Runs

if TYPE_CHECKING:
    from .machines import Machine


@dataclass
class Seat:
    """An actor, the clients whose uploads are in its partial sum, and what it is doing.

    Whoever sits on it may change: ``hello`` is the reference of the first thing that a new one says, the number of its
    process and whose data it has; ``pid`` is that number, 0 until then. The seat is empty, ``actor`` None, as long as
    the only machine to which an actor could go is missing.
    """

    number: int
    actor: Any
    hello: Any = None
    since: float = 0.0   # when the new one was asked for
    pid: int = 0
    holds: Runs | None = None           # whose data it has, once it said so; None: everybody's
    machine: Machine | None = None      # where it was told to be, if it was
    kind: str = "cpu"    # or "cuda"
    device: Any = None   # what that is, once it said so
    loss: tuple[Event, float] | None = None   # that of who sat here before, and when, while nobody made up for it
    done: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    refused: list[ClientError] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    answer: Any = None   # the reference of the call under way
    ping: Any = None
    heard: float = 0.0   # when it last gave a sign of life
    steps: int | None = None    # local steps that it had begun when it last said so
    moved: float = 0.0   # when they last were others
    part: tuple[Layout, float, int] | None = None   # layout, bound and checksum of its partial sum
    small: Any = None    # all of its partial sum, where that is small
    added: int = 0       # entries of its partial sum that are in the sum
    check: int = 0       # checksum of these

    def who(self) -> str:
        """Say who sits here."""
        where = f" at {self.machine.address}" if self.machine else ""
        return f"actor on seat {self.number} " + (f"(process {self.pid})" if self.pid else "(not up yet)") + where

    @property
    def up(self) -> bool:
        """Whether somebody sits here who said hello."""
        return self.actor is not None and self.hello is None

    def has(self, client: int) -> bool:
        """Say whether who sits here has a client's data, as far as is known."""
        return self.up and (self.holds is None or client in self.holds)

    def forget(self) -> None:
        """Be as at the start of a round."""
        self.done, self.records, self.refused, self.busy = [], [], [], []
        self.keep()

    def keep(self) -> None:
        """Have its partial sum, of which nothing was added up yet."""
        self.answer = self.ping = self.part = self.small = None
        self.added = self.check = 0

    def ask(self, answer: Any) -> None:
        """Note a call."""
        self.heard = self.moved = time.monotonic()
        self.answer, self.ping = answer, None

    def made_up(self) -> None:
        """Note that a loss is made up for: the new one answered, or the others did the work."""
        if self.loss is not None:
            event, began = self.loss
            event["recovery_seconds"] = round(time.monotonic() - began, 3)
            self.loss = None

    def pulse(self, api: Any, timeout: float, hang: float | None) -> str:
        """Ask a working actor for a sign of life now and then; return why it is lost, nothing if it is not."""
        now = time.monotonic()
        if self.ping is None:
            if now - self.heard > timeout / 4:
                self.ping = self.actor.alive.options(concurrency_group="health").remote(), now
            return ""
        ping, sent = self.ping
        if not api.wait([ping], timeout=0)[0]:
            return f"it gave no sign of life for {timeout:g} s" if now - sent > timeout else ""
        self.ping, self.heard = None, now
        try:
            steps = api.get(ping)
        except api.exceptions.RayError:
            return ""   # the call under way says why
        if steps != self.steps:
            self.steps, self.moved = steps, now
        elif hang and now - self.moved > hang:
            return f"its work took no step for {hang:g} s (backend.hang)"
        return ""


def checksum(values: np.ndarray) -> int:
    """Return the sum of the bits of some entries as integers, modulo 2^64: no flipped bit leaves it as it was."""
    bits = values.view(np.int64 if values.itemsize == 8 else np.int32)
    return int(bits.sum(dtype=np.int64))


def wrapped(value: int) -> int:
    """Return a sum of checksums as one."""
    return (value + 2**63) % 2**64 - 2**63
