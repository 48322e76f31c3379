"""What the tests of the rendezvous store share: a token, ranks as processes, and somebody who answers falsely."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import local
from typing import Any

import pytest

from fedlearn.backends.torchrun.backend import LOOPBACK
from fedlearn.backends.torchrun.group import Group
from fedlearn.backends.torchrun.serve import Server
from fedlearn.backends.torchrun.store import connect, serve
from fedlearn.backends.torchrun.wire import HELLO

TOKEN = b"a token for tests only"
ROOT = Path(__file__).parents[2]


def together(*calls: Callable[[], object]) -> list[object]:
    """Call all at the same time, and return what they returned or raised."""
    results: list[object] = [None] * len(calls)

    def call(i: int) -> None:
        try:
            results[i] = calls[i]()
        except Exception as e:
            results[i] = e

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def start_ranks(code: str, server: Server, world: int) -> list[subprocess.Popen[str]]:
    """Start ranks as processes of their own, each told the token."""
    children = []
    for rank in range(world):
        child = subprocess.Popen([sys.executable, "-c", code, str(server.port), str(rank), str(world)], cwd=ROOT,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdin is not None
        child.stdin.write(f"{TOKEN.hex()}\n")
        child.stdin.flush()
        children.append(child)
    return children


def end_ranks(children: Sequence[subprocess.Popen[str]]) -> None:
    """End ranks, whatever they are doing."""
    for child in children:
        child.kill()
        child.communicate()


def ranks(code: str, server: Server, world: int) -> list[tuple[int, str]]:
    """Run ranks as processes of their own; return how they ended and what they said."""
    children = start_ranks(code, server, world)
    try:
        return [(child.wait(90), child.communicate()[0].strip()) for child in children]
    finally:
        end_ranks(children)


class serve_once:
    """Somebody who answers one connection with the same bytes whatever it says."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.listener = answer, socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self.listener.accept()[0] as sock:
            self.said = sock.recv(1000)
            sock.sendall(self.answer)
            self.said += sock.recv(1000)

    def __enter__(self) -> int:
        self.thread.start()
        return self.listener.getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self.thread.join(10)
        self.listener.close()
        assert len(self.said) == HELLO   # who does not prove itself is given no proof


def on_hosts(hosts: str, monkeypatch: pytest.MonkeyPatch, do: Callable[[Group], Any]) -> list[Any]:
    """Return what a function makes of the group at every rank; ``hosts`` names each rank's host."""
    here = local()
    # Of one process's ranks each would deafen the others, too.
    monkeypatch.setattr("fedlearn.backends.torchrun.mesh.deafen", lambda fds: None)
    monkeypatch.setattr("fedlearn.backends.torchrun.host.gethostname", lambda: here.name)
    world, server = len(hosts), serve(TOKEN)

    def be(rank: int) -> Any:
        here.name = hosts[rank]
        store = server.store if rank == 0 else connect(TOKEN, "127.0.0.1", server.port, 20.0)
        group = Group(store, rank, world, 20.0, LOOPBACK, range(1, world) if rank == 0 else [0])
        try:
            return do(group)
        finally:
            group.close()
            if rank:
                store.close()

    with ThreadPoolExecutor(world) as pool, closing(server):
        return list(pool.map(be, range(world)))
