"""Ranks as child processes of the coordinator: started, watched, and gone when it is gone."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import ConfigError, WorkerError

LOST = 75   # a child's exit status when it ended because another one did
TAIL = 4096  # bytes of what a child said that are looked at
GRACE = 5.0  # seconds that a child has to leave before it is killed


class Child:
    """One child process; what it prints goes to a file without a name."""

    def __init__(self, rank: int, threads: int) -> None:
        self.rank = rank
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environ = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
        # A session of its own: Ctrl-C is the coordinator's to handle.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedlearn.backends.torchrun_rank"], env=environ,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, start_new_session=True)

    def tell(self, hello: Mapping[str, Any]) -> None:
        """Send the one line that a child starts from."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead already, which await_ready finds and explains
            self.process.stdin.write(json.dumps(hello).encode() + b"\n")
            self.process.stdin.flush()

    def fate(self, within: float = GRACE) -> str:
        """Return how the child ended, with its last words; "" if it still runs after so long."""
        try:
            status = self.process.wait(within)
        except subprocess.TimeoutExpired:
            return ""
        how = f"exited with status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        size = os.fstat(self.said.fileno()).st_size
        lines = os.pread(self.said.fileno(), TAIL, max(0, size - TAIL)).decode(errors="replace").strip().splitlines()
        words = f"; its last words: {lines[-1].strip()[:500]}" if lines else ""
        return f"rank {self.rank} (process {self.process.pid}) {how}{words}"

    def kill(self) -> None:
        """End the child at once, frozen or not."""
        self.process.kill()
        self.process.wait()


def bind(port: int) -> socket.socket:
    """Return a socket that listens on loopback, where children meet their coordinator.

    Raises:
        ConfigError: if the port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as e:
        listener.close()
        raise ConfigError("backend.port", port, "a port that is free on this machine",
                          f"{e.strerror}; 0 takes any free one.") from e
    return listener


def await_ready(children: Sequence[Child], timeout: float) -> None:
    """Wait until every child has its setup.

    Raises:
        WorkerError: at once if one dies, after ``timeout`` seconds if one says nothing.
    """
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for child in children:
            assert child.process.stdout is not None
            selector.register(child.process.stdout, selectors.EVENT_READ, child)
        while left := {key.data.rank: key for key in selector.get_map().values()}:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events:
                ranks = ", ".join(map(str, sorted(left)))
                raise WorkerError(f"rank {ranks} was not ready within {timeout:g} s; free the machine, use "
                                  "fewer backend.workers, or raise backend.timeout")
            for key, _ in events:
                if not os.read(key.fd, 64):
                    raise WorkerError(f"{key.data.fate() or f'rank {key.data.rank} closed its connection'} "
                                      "(before it was ready)")
                selector.unregister(key.fileobj)


def culprit(children: Sequence[Child], silent: Sequence[int] = ()) -> str:
    """Return what became of the children that a group was lost with."""
    deadline = time.monotonic() + (0.0 if silent else 2.0)
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
        for pipe in (child.process.stdin, child.process.stdout, child.said):
            if pipe is not None and not pipe.closed:
                with suppress(OSError):  # unsent words to a dead child
                    pipe.close()
