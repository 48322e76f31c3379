"""Stopping a run when a signal asks for it, so that nothing is lost.

    signal            once                                          again
    SIGINT (Ctrl-C)   the round is finished, then the run stops     the run ends at once, with KeyboardInterrupt
    SIGTERM, SIGUSR1  the same, but within a grace period, after    the round is given up now
                      which the round is given up

A launcher's agent kills who does not follow Ctrl-C in time: there it has the grace period, too. A round is given up
only while its work is out with the workers, or a model is evaluated: a server update, a checkpoint and a line that is
being written are finished. Before and after the rounds every signal ends the run at once. Signals come to the main
thread; a run in another one goes by none. What was to be done on a signal before is put back when the run is over.

Under torchrun's agent nobody listens before the rounds: ranks that wait for one another would hear too late, and the
agent, which stops all of them when one was lost, would wait for them.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Any, cast

from ..work import Exchange, Reduced, Reply, Work, Workers

GRACE = 20.0    # seconds; launchers wait 30 before they kill
AGENT = "TORCHELASTIC_RUN_ID"   # set where torchrun's agent started this process
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
CODES = {signal.SIGINT: 130}    # of a run that was stopped by it; 75 for the others


class GivenUp(BaseException):
    """What is under way is given up; not an Exception, so that nobody takes it for a failure of a client's work."""


class Stopping:
    """What signals have asked for during a run; a context that hears them, if it is the main thread's."""

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self.asked: signal.Signals | None = None    # the signal that ends the run after this round
        self.now = False                # whether what is under way is to be given up
        self.round: int | None = None   # the round under way, counted from 1; None outside of the rounds
        self.whole = True               # whether the loop's state is still that of before the round
        self.ended: int | None = None   # the rounds that were done when the run stopped
        self.tell: Callable[[str], None] = _to_stderr
        self.breakable = self.ticking = self.over = False
        self.interrupts = 0
        self.before: dict[signal.Signals, Any] = {}
        self.ear = self.bell = -1       # a pipe to the clock: a handler must not start threads or take locks
        self.clock: Thread | None = None

    def __enter__(self) -> Stopping:
        if current_thread() is main_thread():
            before = {number: signal.getsignal(number) for number in HEARD}
            # Who ignores a signal goes on ignoring it: a job in the background, under nohup.
            self.before = {number: was for number, was in before.items() if was not in (None, signal.SIG_IGN)}
            self.ear, self.bell = os.pipe()
            self.clock = Thread(target=self._tick, name="fedlearn-grace", daemon=True)
            self.clock.start()
            if AGENT not in os.environ:
                self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self.clock is None:
            return
        self.over = True
        os.write(self.bell, b".")   # the clock must not strike once the handlers are gone
        self.clock.join()
        for number, was in self.before.items():
            signal.signal(number, was)
        os.close(self.bell)
        os.close(self.ear)

    def listen(self) -> None:
        """Hear the signals, also after somebody else has set their handlers."""
        for number in self.before:
            signal.signal(number, self._hear)

    def begin(self, round: int) -> None:
        """Note that a round, counted from 1, begins."""
        self.round, self.whole = round, True

    def heed(self, call: Callable, *args: Any) -> Any:
        """Call what may be given up.

        Raises:
            GivenUp: if it is, or was to be before it began.
        """
        self.breakable = True
        try:
            if self.now:
                raise GivenUp
            with interruptible():
                return call(*args)
        finally:
            self.breakable = False

    def reason(self) -> str:
        """Return the name of the signal that stopped the run."""
        return NAMES[self.asked or signal.SIGINT]

    def code(self) -> int:
        """Return the exit code of a run that was stopped."""
        return CODES.get(self.asked or signal.SIGINT, 75)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        heard = signal.Signals(number)
        if self.over:
            return
        if heard is signal.SIGINT:
            self.interrupts += 1
            if self.round is None or self.interrupts > 1:
                self.now = True
                raise KeyboardInterrupt
        elif self.round is None:
            self.asked, self.now = heard, True
            raise GivenUp
        limited = heard is not signal.SIGINT or AGENT in os.environ
        if not self.ticking:
            self.asked = heard
        if not limited:
            self.tell(f"finishing round {self.round}, then stopping; Ctrl-C again stops now")
        elif not self.ticking:
            self.ticking = True
            os.write(self.bell, b"!")
            self.tell(f"{NAMES[heard]}: finishing round {self.round} within {self.grace:g} s, then stopping")
        else:
            self.now = True
            if self.breakable:
                raise GivenUp

    def _tick(self) -> None:
        """Once the bell has rung, wait for the end of the run; past the grace period interrupt the main thread."""
        if os.read(self.ear, 1) == b"!" and not select.select([self.ear], [], [], self.grace)[0]:
            number = next(n for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT) if n in self.before)
            signal.pthread_kill(cast(int, main_thread().ident), number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let through what a signal's handler raised in the middle of Ray's compiled code, which calls it SystemError."""
    try:
        yield
    except SystemError as e:
        if isinstance(e.__cause__, GivenUp | KeyboardInterrupt):
            raise e.__cause__ from None
        raise


class Heeding:
    """Workers whose work can be given up; in all else they are the workers themselves."""

    def __init__(self, workers: Workers, stopping: Stopping) -> None:
        self.workers, self.stopping = workers, stopping

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workers, name)

    def map_reduce(self, work: Work) -> Reduced:
        """Run the work of all its clients; once it is done, the loop may change its state."""
        reduced = self.stopping.heed(self.workers.map_reduce, work)
        self.stopping.whole = False
        return reduced

    def submit(self, work: Work) -> None:
        """Start the work of its one client."""
        self.stopping.whole = False
        self.stopping.heed(self.workers.submit, work)

    def next(self) -> Reply:
        """Return the reply that arrives first."""
        self.stopping.whole = False
        return self.stopping.heed(self.workers.next)

    def exchange(self, exchange: Exchange) -> Any:
        """Let every node work and mix, in place."""
        self.stopping.whole = False
        return self.stopping.heed(self.workers.exchange, exchange)


def heeding(workers: Workers, stopping: Stopping) -> Workers:
    """Return the workers as a loop is given them."""
    return cast(Workers, Heeding(workers, stopping))


def _to_stderr(text: str) -> None:
    """Write a line past Python's buffers, in the middle of which a signal may come."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())
