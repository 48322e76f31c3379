"""The rendezvous store of a group of ranks, for those only who know the group's token.

It stands where a TCPStore of ``torch.distributed`` would, which asks nobody who they are: whoever reaches its port
reads and overwrites its keys and takes a rank. Here both ends prove that they know the token before anything is read
(torchrun_wire says how). A stranger is refused, logged, and takes no memory beyond a small bound; the others do not
notice.

One process serves, from one thread that never waits for anybody; the others connect. A client asks one thing at a
time over a connection, and opens another where two of its threads ask at once: a wait in one holds up no other.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from .serve import Server
from .table import LATE, WRONG, Waiting
from .wire import LONGEST, Impostor, Refused, Seal, hear, introduce, prove

LATER = 1.0   # seconds that a client waits longer than the server, which is to say itself that it is too late
living: set[Any] = set()   # stores that are open: torch holds only their C++ half, which is empty


class Store(dist.Store):
    """What a client and the serving process have in common: keys and values, as a TCPStore has them."""

    timeout: timedelta   # of a get; set_timeout sets it

    def __init__(self, token: bytes, timeout: float) -> None:
        super().__init__()
        self.token = token
        self.set_timeout(timedelta(seconds=timeout))

    def set(self, key: str, value: str | bytes) -> None:
        """Set a key."""
        self._ask(b"set", key, value)

    def get(self, key: str) -> bytes:
        """Return a key's value, as soon as it has one."""
        return self._wait(b"take", [key])[0]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return as soon as all keys have values; DistStoreError is raised if that takes too long."""
        self._wait(b"wait", keys, timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all keys have values."""
        return self._ask(b"check", *keys) == [b"1"]

    def add(self, key: str, amount: int) -> int:
        """Add to a key's number, which begins at 0, and return the sum."""
        return int(self._ask(b"add", key, str(amount))[0])

    def append(self, key: str, value: str | bytes) -> None:
        """Add to the end of a key's value."""
        self._ask(b"append", key, value)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Set a key if it has the expected value, or none and none is expected; return what it has then."""
        return self._ask(b"swap", key, expected, desired)[0]

    def delete_key(self, key: str) -> bool:
        """Delete a key; return whether there was one."""
        return self._ask(b"delete", key) == [b"1"]

    def num_keys(self) -> int:
        """Return how many keys there are."""
        return int(self._ask(b"count")[0])

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Return the values of keys, as soon as all have one."""
        return self._wait(b"take", keys)

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Set several keys at once."""
        self._ask(b"set", *(part for pair in zip(keys, values, strict=True) for part in pair))

    def has_extended_api(self) -> bool:
        """Say that append, multi_get and multi_set are there."""
        return True

    def clone(self) -> Store:
        """Return this store: any number of threads may use it."""
        return self

    # The names by which torch's C++ looks for these two.
    deleteKey, getNumKeys = delete_key, num_keys

    def prove(self, role: str, *about: bytes) -> bytes:
        """Return a proof, in some role and about something, that this process knows the token."""
        return prove(self.token, role, *about)

    def close(self) -> None:
        """Let go of the store; safe to call twice."""
        living.discard(self)

    def _wait(self, verb: bytes, keys: Sequence[str], timeout: timedelta | None = None) -> list[bytes]:
        patience = (self.timeout if timeout is None else timeout).total_seconds()
        answer = self._answer(patience, verb, *map(_bytes, keys))
        if answer[0] == WRONG:
            raise dist.DistStoreError(answer[1].decode(errors="replace"))
        if answer[0] == LATE:
            raise dist.DistStoreError(f"wait timeout after {patience:g} s, keys: {', '.join(keys)}")
        return answer[1:]

    def _ask(self, verb: bytes, *words: str | bytes) -> list[bytes]:
        if (size := sum(map(len, words))) > LONGEST // 2:
            raise dist.DistStoreError(f"{size} bytes are too many for the rendezvous store, which takes {LONGEST // 2}")
        answer = self._answer(None, verb, *map(_bytes, words))
        if answer[0] == WRONG:
            raise dist.DistStoreError(answer[1].decode(errors="replace"))
        return answer[1:]

    def _answer(self, patience: float | None, *words: bytes) -> list[bytes]:
        raise NotImplementedError


class Own(Store):
    """The store as the process that serves it has it; closing it ends the server."""

    def __init__(self, token: bytes, server: Server, timeout: float) -> None:
        super().__init__(token, timeout)
        self.server = server
        living.add(self)

    def close(self) -> None:
        """End the server; safe to call twice."""
        super().close()
        self.server.close()

    def _answer(self, patience: float | None, *words: bytes) -> list[bytes]:
        if self.server.closed:
            raise dist.DistStoreError("the rendezvous store is closed")
        table = self.server.table
        if patience is None:
            return table.do(words)
        there = threading.Event()
        waiting = Waiting(words[0], words[1:], there.set)
        table.wait(waiting)
        if not there.wait(max(0.0, patience)):
            table.forget(waiting)
        return waiting.answer or [LATE]


class Client(Store):
    """The store as all other processes have it."""

    def __init__(self, token: bytes, address: tuple[str, int], timeout: float) -> None:
        super().__init__(token, timeout)
        self.address = address
        self.free: list[tuple[socket.socket, Seal, Seal]] = []   # connections that nobody uses at the moment
        self.open = True
        self.free.append(self._dial(timeout, later=True))
        living.add(self)

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        super().close()
        self.open = False
        while self.free:
            self.free.pop()[0].close()

    def _answer(self, patience: float | None, *words: bytes) -> list[bytes]:
        limit = self.timeout.total_seconds()
        if not self.open:
            raise dist.DistStoreError("the rendezvous store is closed")
        try:
            try:
                line = self.free.pop()
            except IndexError:
                line = self._dial(limit)
            sock, theirs, ours = line
            try:
                if patience is not None:
                    limit = max(0.0, patience) + LATER
                    words = (words[0], str(patience).encode(), *words[1:])
                sock.settimeout(limit)
                sock.sendall(ours.close(words))
                while (answer := theirs.open()) is None:
                    theirs.read += hear(sock)
            except BaseException:
                sock.close()   # an answer may still come, which is not that to the next question
                raise
        except TimeoutError as e:
            raise dist.DistStoreError(f"no answer from {self._where()} within {limit:g} s") from e
        except (OSError, Refused) as e:
            raise dist.DistStoreError(f"lost {self._where()}: {e}") from e
        self.free.append(line)
        if not self.open:   # closed by another thread meanwhile
            self.close()
        return answer

    def _dial(self, limit: float, later: bool = False) -> tuple[socket.socket, Seal, Seal]:
        # ``later``: nobody may serve yet.
        deadline = time.monotonic() + limit
        while True:
            try:
                sock = socket.create_connection(self.address, max(0.01, deadline - time.monotonic()))
                try:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return sock, *introduce(sock, self.token)
                except BaseException:
                    sock.close()
                    raise
            except Impostor as e:
                raise Impostor(f"refused {self._where()}: {e}; either the ranks were given different tokens, or "
                               "somebody else answers there") from None
            except (OSError, Refused) as e:
                # Many strangers that knock at once may have it cut off.
                gone = isinstance(e, ConnectionRefusedError) and not later
                if gone or time.monotonic() + 0.05 > deadline:
                    raise dist.DistStoreError(f"cannot reach {self._where()} within {limit:g} s: {e}") from e
            time.sleep(0.05)

    def _where(self) -> str:
        return f"the rendezvous store at {self.address[0]}:{self.address[1]}"


def serve(token: bytes, host: str = "127.0.0.1", port: int = 0, timeout: float = 300.0,
          log: Callable[[str], None] | None = None) -> Server:
    """Serve a new store at an address of this machine, and at no other; ``store`` of it is for this process.

    ``port`` 0 takes any free one; ``timeout`` is that of a ``get`` here.

    Raises:
        ConfigError: if the port is taken, or the address is not this machine's.
    """
    server = Server(token, host, port, log or logging.getLogger("fedlearn").warning)
    server.store = Own(token, server, timeout)
    return server


def connect(token: bytes, host: str, port: int, timeout: float) -> Client:
    """Connect to a store that somebody serves, or will within ``timeout`` seconds, also that of every later ``get``.

    Raises:
        Impostor: a RuntimeError, if who serves there does not know the token.
        DistStoreError: a RuntimeError, if nobody does.
    """
    return Client(token, (host, port), timeout)


def _bytes(word: str | bytes) -> bytes:
    return word.encode() if isinstance(word, str) else bytes(word)
