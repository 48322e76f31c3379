"""A rank that the coordinator of this machine started: ``python -m fedlearn.backends.torchrun.child``.

It is told over its standard input where to find its setup and its group, and ends at once when that closes, so that
it never outlives the coordinator. When its group is lost it says so, keeps its worker with all data, and waits to be
told of the next group. SIGTERM and SIGINT, which a batch system sends to everybody, are the coordinator's to heed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread, main_thread
from typing import Any

from ...errors import FedlearnError
from ...worker.worker import Worker
from ..device import placed
from ..gather import encode
from ..parcel import unpack
from .children import LOST
from .device import choose
from .group import Group
from .lost import Lost
from .pulse import Toil
from .rank import serve
from .rendezvous import part_for, reach

OVER = "the coordinator broke the group up"


class Interrupted(BaseException):
    """What ends a share that nobody waits for any more."""


class Orders:
    """What the coordinator says on standard input: groups to join, and which of them is no more."""

    def __init__(self) -> None:
        self.groups: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.broken = -1                     # the last group that was broken up
        self.group = -1                      # the group that this rank is in
        self.interruptible = False
        signal.signal(signal.SIGUSR1, self._interrupt)
        self.input = os.fdopen(os.dup(0), "rb")
        Thread(target=self._listen, name="fedlearn-orders", daemon=True).start()

    def next(self) -> dict[str, Any]:
        """Return what is said of the next group, or of the setup at first."""
        hello = self.groups.get()
        self.group = hello.get("group", -1)
        return hello

    def over(self) -> str:
        """Say why nothing can come of this group's operations any more, if so."""
        return OVER if self.broken >= self.group >= 0 else ""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be at work; it is interrupted when the group is broken up, or has been before.

        Raises:
            Lost: if it is interrupted.
        """
        try:
            try:
                self.interruptible = True
                if self.over():
                    raise Interrupted
                yield
            finally:
                self.interruptible = False
        except Interrupted:
            raise Lost(OVER) from None

    def _interrupt(self, *_: Any) -> None:
        if self.interruptible and self.over():
            self.interruptible = False
            raise Interrupted

    def _listen(self) -> None:
        for line in self.input:
            said = json.loads(line)
            if "broken" in said:
                self.broken = said["broken"]
                ident = main_thread().ident
                assert ident is not None
                signal.pthread_kill(ident, signal.SIGUSR1)
            else:
                self.groups.put(said)
        os._exit(LOST)


class Voice:
    """What this rank says to the coordinator, one line at a time."""

    def __init__(self) -> None:
        # Whatever anybody prints goes where the coordinator looks for last words.
        self.output = os.dup(1)
        os.dup2(2, 1)

    def say(self, **words: Any) -> None:
        """Say something that JSON can hold."""
        os.write(self.output, json.dumps(words).encode() + b"\n")

    @contextmanager
    def humming(self, every: float) -> Iterator[None]:
        """Give signs of life for as long as this lasts."""
        stop = Event()

        def hum() -> None:
            while not stop.wait(every):
                self.say(at="busy")

        thread = Thread(target=hum, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def main() -> int:
    """Be a rank until the coordinator closes, and return the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    voice, orders = Voice(), Orders()
    hello = orders.next()
    if hello["parent"] and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    setup = unpack(Path(hello["parcel"]).read_bytes())
    voice.say(at="unpacked")
    try:
        with voice.humming(hello["timeout"] / 4):
            device = choose(hello["devices"], setup.task, hello["seat"], hello["seat"], hello["seats"])
            worker = Worker(placed(setup, device), through=True)
            store = reach(hello)
    except FedlearnError as e:
        voice.say(at="failed", error=encode(e, f"rank {hello['seat']}"))
        return LOST
    voice.say(at="ready")
    toil = Toil(worker)
    while True:
        join, group = orders.next(), None
        try:
            group = Group(part_for(store, join["group"]), join["rank"], join["world"], hello["timeout"],
                          hello["interface"], device=device, hang=hello["hang"], over=orders.over)
            serve(group, worker, toil, orders.working)
            return 0
        except (Lost, RuntimeError) as e:
            why, own = str(e), isinstance(e, Lost) and e.own
            if not isinstance(e, Lost):
                traceback.print_exc()
        if group is not None:
            group.close(healthy=False)
            if group.stuck:
                return LOST     # with an operation that waits for ever this process is of no more use
        voice.say(at="lost", why=why, own=own)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to tidy, and taking torch down takes a second
