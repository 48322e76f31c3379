"""The serving side of the rendezvous store: the thread that answers for its keys.

The thread never waits for anybody: a connection that has not proved within ``PATIENCE`` seconds that it knows the token
is cut, at most ``STRANGERS`` such connections are held at a time (the oldest goes first), and a client asks one thing
at a time, so that what is held for it is one question or one answer.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import ConfigError
from .table import LATE, WRONG, Refusals, Table, Waiting
from .wire import PIECE, Refused, Seal, Welcome

if TYPE_CHECKING:
    from .store import Own

PATIENCE = 5.0    # seconds that a stranger has to prove that it knows the token
STRANGERS = 64    # connections at a time that have not yet
BATCH = 16        # that are taken in before those that are in are heard again
TICK = 0.05       # seconds between two looks at whose time is up


class Line:
    """One connection: first a stranger's, then a client's."""

    def __init__(self, sock: socket.socket, address: str, welcome: Welcome) -> None:
        self.sock, self.address, self.welcome = sock, address, welcome
        self.until = time.monotonic() + PATIENCE
        self.seals: tuple[Seal, Seal] | None = None
        self.waiting: Waiting | None = None
        self.out = bytearray()


class Server:
    """Serves a store until it is closed; ``port`` says where, ``refused`` who was not let in."""

    store: Own

    def __init__(self, token: bytes, host: str, port: int, log: Callable[[str], None]) -> None:
        self.token, self.table, self.refused, self.closed = token, Table(), Refusals(log), False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self.listener = socket.create_server((host, port), family=family, backlog=512)
        except OSError as e:
            raise ConfigError("backend.port", port, f"a port that is free at {host}, an address of this machine",
                              f"{e.strerror}; 0 takes any free one.") from e
        self.host, self.port = self.listener.getsockname()[:2]
        self.listener.setblocking(False)
        self.heard, self.bell = socket.socketpair()
        self.bell.setblocking(False)
        self.heard.setblocking(False)
        self.ready: deque[Line] = deque()        # whose answer is there
        self.strangers: dict[Line, None] = {}    # in the order in which they came
        self.parked: set[Line] = set()           # who wait for keys
        self.looked = 0.0
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.heard, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._serve, name="fedlearn-store", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop serving and cut all connections; safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self.store.close()
        self._ring()
        self.thread.join()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()   # type: ignore[union-attr]
        self.selector.close()
        self.bell.close()
        self.refused.look(end=True)

    def _serve(self) -> None:
        while not self.closed:
            hurried = self.strangers or self.parked
            for key, events in self.selector.select(TICK if hurried else None):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj is self.heard:
                    self.heard.recv(PIECE)
                elif key.data.sock.fileno() >= 0:   # it may have been cut since
                    self._tend(key.data, events)
            while self.ready:
                line = self.ready.popleft()
                if line.waiting is not None and line.sock.fileno() >= 0:
                    self._say(line, line.waiting.answer or [LATE])
            self._look()

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                sock, there = self.listener.accept()
            except BlockingIOError:
                return
            except OSError:   # gone already, or no more files may be open
                time.sleep(0.01)
                return
            sock.setblocking(False)
            with suppress(OSError):   # some systems say so if it is gone already
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            line = Line(sock, f"{there[0]}:{there[1]}", Welcome(self.token))
            self.strangers[line] = None
            self.selector.register(sock, selectors.EVENT_READ, line)
            if len(self.strangers) > STRANGERS:
                self._refuse(next(iter(self.strangers)), f"more than {STRANGERS} at a time had yet to prove that they "
                             "know the token")

    def _tend(self, line: Line, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(line)
            if events & selectors.EVENT_READ:
                data = line.sock.recv(PIECE)
                if not data:
                    if line.seals is None:
                        raise Refused("it left before it had proved that it knows the token")
                    self._cut(line)
                elif line.seals is None:
                    self._welcome(line, data)
                else:
                    self._hear(line, data)
        except BlockingIOError:
            pass
        except Refused as e:
            self._refuse(line, str(e))
        except OSError as e:
            if line.seals is None:
                self._refuse(line, f"it left before it had proved that it knows the token ({e.strerror})")
            else:
                self._cut(line)

    def _welcome(self, line: Line, data: bytes) -> None:
        line.out += line.welcome.take(data)
        self._flush(line)
        if line.welcome.seals is not None:
            line.seals = line.welcome.seals
            del self.strangers[line]
            self._hear(line, b"")

    def _hear(self, line: Line, data: bytes) -> None:
        assert line.seals is not None
        if data and (line.waiting is not None or line.out):
            raise Refused("it asked again before it had its answer")
        line.seals[0].read += data
        words = line.seals[0].open()
        if words is None:
            return
        if line.seals[0].read:
            raise Refused("it asked again before it had its answer")
        if words[:1] not in ([b"take"], [b"wait"]):
            self._say(line, self.table.do(words))
            return
        try:
            patience = float(words[1])
        except (ValueError, IndexError):
            raise Refused("a question that is not understood") from None
        line.waiting = Waiting(words[0], words[2:], lambda: self._call(line), time.monotonic() + patience)
        self.parked.add(line)
        self.table.wait(line.waiting)

    def _call(self, line: Line) -> None:
        # From any thread that set a key.
        self.ready.append(line)
        if threading.current_thread() is not self.thread:
            self._ring()

    def _ring(self) -> None:
        with suppress(OSError):   # it rings already, or nobody hears any more
            self.bell.send(b"!")

    def _say(self, line: Line, answer: Sequence[bytes]) -> None:
        assert line.seals is not None
        line.waiting = None
        self.parked.discard(line)
        try:
            line.out += line.seals[1].close(answer)
        except ValueError as e:
            line.out += line.seals[1].close([WRONG, str(e).encode()])
        try:
            self._flush(line)
        except OSError:
            self._cut(line)

    def _flush(self, line: Line) -> None:
        if line.out:
            with suppress(BlockingIOError):
                del line.out[:line.sock.send(line.out)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.out else 0)
        if self.selector.get_key(line.sock).events != wanted:
            self.selector.modify(line.sock, wanted, line)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self.looked < TICK:
            return
        self.looked = now
        for line in [line for line in self.strangers if now > line.until]:
            self._refuse(line, f"it did not prove within {PATIENCE:g} s that it knows the token")
        for line in [line for line in self.parked if line.waiting is not None and now > line.waiting.until]:
            assert line.waiting is not None
            self.table.forget(line.waiting)
            self._say(line, line.waiting.answer or [LATE])
        self.refused.look()

    def _refuse(self, line: Line, what: str) -> None:
        self._cut(line)
        self.refused.note(f"{self.host}:{self.port}", line.address, what)

    def _cut(self, line: Line) -> None:
        if line.waiting is not None:
            self.table.forget(line.waiting)
            line.waiting = None
        self.strangers.pop(line, None)
        self.parked.discard(line)
        self.selector.unregister(line.sock)
        line.sock.close()

