"""Ranks as child processes of the coordinator: started, watched, and gone when it is gone."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ...errors import FedlearnError
from ..gather import decode
from ..start import START

LOST = 75   # a child's exit status when it ended because another one did
TAIL = 4096  # bytes of what a child said that are looked at
GRACE = 5.0  # seconds that a child has to leave before it is killed


class Child:
    """One child process; what it prints goes to a file without a name.

    ``seat`` is its place from 1 on, which a newcomer takes over, ``rank`` that in the present group.
    """

    def __init__(self, seat: int, threads: int) -> None:
        self.seat = self.rank = seat
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environ = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        try:
            # A session of its own: Ctrl-C is the coordinator's to handle.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedlearn.backends.torchrun.child"], env=environ,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, start_new_session=True)
        except BaseException:
            self.said.close()
            raise
        self.began = self.heard = time.monotonic()   # when it gave a sign of life here
        self.started = self.ready = False            # whether it has its setup, and waits for a group
        self.new = True                              # whether it was in no group yet
        self.error: FedlearnError | None = None      # why it cannot be a rank
        self.why, self.own = "", False               # why it lost its group, and whether by itself
        self.rest = b""

    @property
    def who(self) -> str:
        """Return how the child is called."""
        return f"rank {self.rank} (process {self.process.pid})"

    def tell(self, words: Mapping[str, Any]) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead already, which ``muster`` finds and explains
            self.process.stdin.write(json.dumps(words).encode() + b"\n")
            self.process.stdin.flush()

    def expect(self) -> None:
        """Be waited for from now on, to be ready for another group."""
        self.new = False
        self.ready, self.own, self.why, self.heard = False, False, "", time.monotonic()

    def hear(self) -> bool:
        """Take in what the child said; return whether there can be more."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        self.heard = time.monotonic()
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            match said["at"]:
                case "unpacked":
                    self.started = True
                case "ready":
                    self.ready = True
                case "lost":
                    self.ready, self.why, self.own = True, said["why"], said["own"]
                case "failed":
                    self.error = decode(said["error"])
        return bool(data)

    def late(self, timeout: float, hang: float) -> str:
        """Say why the child is waited for no longer, if so: a newcomer may take its time over its worker."""
        now = time.monotonic()
        if self.new and hang and self.started and now - self.began >= timeout + hang:
            return f"was not ready within {timeout + hang:g} s"
        if self.new and not self.started:   # it cannot give a sign of life while it starts Python and imports torch
            start = max(timeout, START)
            return f"was not ready within {start:g} s" if now - self.began >= start else ""
        return f"was not ready within {timeout:g} s" if now - self.heard >= timeout else ""

    def end(self, within: float = GRACE) -> str:
        """Say how the child ended, with its last words; "" if it still runs after so long."""
        try:
            status = self.process.wait(within)
        except subprocess.TimeoutExpired:
            return ""
        how = f"exited with status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        size = os.fstat(self.said.fileno()).st_size
        lines = os.pread(self.said.fileno(), TAIL, max(0, size - TAIL)).decode(errors="replace").strip().splitlines()
        return how + (f"; its last words: {lines[-1].strip()[:500]}" if lines else "")

    def fate(self, within: float = GRACE) -> str:
        """Say who ended and how; "" if the child still runs after so long."""
        how = self.end(within)
        return f"{self.who} {how}" if how else ""

    def kill(self) -> None:
        """End the child at once, frozen or not."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Let go of what an ended child was heard through."""
        for pipe in (self.process.stdin, self.process.stdout, self.said):
            if pipe is not None and not pipe.closed:
                with suppress(OSError):  # unsent words to a dead child
                    pipe.close()


def muster(children: Sequence[Child], timeout: float, hang: float) -> tuple[Child, str] | None:
    """Wait until every child is ready for a group; return the first that will not be and why, if one is.

    That is one that died, could not make its worker, or gave no sign of life for ``timeout`` seconds.
    """
    with selectors.DefaultSelector() as selector:
        for child in children:
            assert child.process.stdout is not None
            selector.register(child.process.stdout, selectors.EVENT_READ, child)
        while waiting := [child for child in children if not child.ready]:
            for key, _ in selector.select(min(1.0, timeout / 16)):
                child = key.data
                if not child.hear():
                    return child, child.end() or "closed its connection"
                if child.error is not None:
                    return child, str(child.error)
            for child in waiting:
                if not child.ready and (why := child.late(timeout, hang)):
                    return child, why
    return None


def culprit(children: Sequence[Child], known: Sequence[int] = ()) -> str:
    """Return what became of the children that a group was lost with."""
    deadline = time.monotonic() + (0.0 if known else 2.0)
    while True:
        dead = [c for c in children if c.process.poll() is not None]
        first = [c for c in dead if c.process.returncode != LOST]
        if first or time.monotonic() > deadline:
            return "; ".join(c.fate() for c in first or dead)
        time.sleep(0.01)


def end(children: Sequence[Child], healthy: bool) -> None:
    """Reap all children: healthy ones leave by themselves, the others are killed."""
    deadline = time.monotonic() + (GRACE if healthy else 0.0)
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
        child.close()
