"""Uninvited guests at the rendezvous store and on the wire: refused, logged, and the others do not notice."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
import torch.distributed as dist
from backends.rendezvous import TOKEN, together, until

from fedlearn.backends.torchrun.serve import STRANGERS, Server
from fedlearn.backends.torchrun.store import Client, connect
from fedlearn.backends.torchrun.table import LINES
from fedlearn.backends.torchrun.wire import HELLO, LONGEST, MAGIC, NONCE, Impostor, introduce, prove

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = connect(TOKEN, "127.0.0.1", server.port, 10)
    client.set("secret", "value")
    yield client
    # Whatever happened meanwhile: the others are served as before, and nothing was changed.
    assert client.get("secret") == b"value" and client.num_keys() == 1
    client.close()
    until(lambda: len(server.selector.get_map()) == 2 and not server.strangers)


def knock(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def closed(sock: socket.socket) -> bool:
    """Return whether the other end closes without another word; nothing that it says counts as that."""
    try:
        return sock.recv(1000) == b""
    except ConnectionResetError:
        return True


def says(*words: bytes, then: Callable[[socket.socket], object] = closed) -> Callable[[int], object]:
    def stranger(port: int) -> object:
        with knock(port) as sock:
            for word in words:
                sock.sendall(word)
            return then(sock)

    return stranger


def hangs_up(sock: socket.socket) -> bool:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))   # with a reset
    return True


def has_another_token(port: int) -> object:
    with pytest.raises(Impostor, match="different tokens"):
        connect(b"another token, a wrong one", "127.0.0.1", port, 5)
    return True


def guesses(port: int) -> object:
    with knock(port) as sock:
        sock.sendall(MAGIC + bytes(NONCE))
        nonces = bytes(NONCE) + sock.recv(1000)[:NONCE]
        sock.sendall(prove(b"another token, a wrong one", "client", nonces) + b"\0" * 100)
        return closed(sock)


def reflects(port: int) -> object:
    """Hand the server's own proof back, as one that does not tell who proves what would take it."""
    with knock(port) as sock:
        sock.sendall(MAGIC + bytes(NONCE))
        sock.sendall(sock.recv(1000)[NONCE:])
        return closed(sock)


def uses_torchs_own_client(port: int) -> object:
    with pytest.raises(RuntimeError):
        dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=2)).set("secret", "stolen")
    return True


def sealed(words: Callable[[Callable[..., bytes]], bytes]) -> Callable[[int], object]:
    """Somebody who got as far as a client, and then goes wrong: a connection that was taken over."""
    def stranger(port: int) -> object:
        with knock(port) as sock:
            _, ours = introduce(sock, TOKEN)
            sock.sendall(words(lambda *fields: ours.close(fields)))
            got = sock.recv(100_000)
            return not got or closed(sock)

    return stranger


GUESTS = {
    "silent": (says(), r"it did not prove within 0.4 s"),
    "garbage": (says(b"\xff\x00garbage" * 50), r"does not speak this protocol \(it began with b'\\xff\\x00garbage"),
    "http": (says(b"GET / HTTP/1.1\r\n\r\n"), r"\(it began with b'GET / HTTP/1.1"),
    "huge": (says(b"\xff\xff\xff\xff"), "does not speak this protocol"),
    "half a hello": (says((MAGIC + bytes(NONCE))[:20]), "it did not prove within 0.4 s"),
    "too long a hello": (says(MAGIC + bytes(NONCE + 1)), "said more than its turn allows"),
    "hello and no more": (says(MAGIC + bytes(NONCE), then=lambda sock: len(sock.recv(1000)) == 64 and closed(sock)),
                          "it did not prove within 0.4 s"),
    "gone at once": (says(then=lambda sock: True), "it left before it had proved"),
    "gone with a reset": (says(MAGIC, then=hangs_up), "it left before it had proved"),
    "another token": (has_another_token, "it left before it had proved"),
    "a guess": (guesses, "it did not prove that it knows the token"),
    "a reflection": (reflects, "it did not prove that it knows the token"),
    "torch": (uses_torchs_own_client, "does not speak this protocol"),
    "a frame twice": (sealed(lambda seal: (frame := seal(b"check", b"a")) + frame), "asked again before"),
    "a frame that is altered": (sealed(lambda seal: seal(b"delete", b"secret").replace(b"se", b"sa")), "was altered"),
    "a frame left out": (sealed(lambda seal: (seal(b"count"), seal(b"delete", b"secret"))[1]), "was altered"),
    "a huge frame": (sealed(lambda seal: struct.pack(">I", LONGEST + 1)), f"a frame of {LONGEST + 1} bytes"),
    "no question": (sealed(lambda seal: seal(b"cos\nsystem\n(S'true'\ntR.")), "a question that is not understood"),
    "no fields": (sealed(lambda seal: seal(b"set", b"secret")), "a question that is not understood"),
    "no time": (sealed(lambda seal: seal(b"take", b"soon", b"secret")), "a question that is not understood"),
}


@pytest.mark.parametrize("who", GUESTS)
def test_a_stranger_is_refused_and_logged_once(server: Server, client: Client, lines: list[str], who: str) -> None:
    stranger, why = GUESTS[who]
    start = time.monotonic()
    assert stranger(server.port)
    assert time.monotonic() - start < 9
    until(lambda: server.refused.count > 0)
    visits = 1 if who != "torch" else server.refused.count   # torch's client tries again
    assert server.refused.count == visits and len(lines) == min(visits, LINES)
    assert lines[0].startswith(f"the rendezvous store at 127.0.0.1:{server.port} refused a connection from 127.0.0.1:")
    assert re.search(why, lines[0]), lines[0]


def test_a_replayed_frame_is_refused(server: Server, client: Client) -> None:
    with knock(server.port) as sock:
        theirs, ours = introduce(sock, TOKEN)
        frame = ours.close([b"add", b"secret2", b"1"])
        sock.sendall(frame)
        while theirs.open() is None:
            theirs.read += sock.recv(1000)
        sock.sendall(frame)
        assert closed(sock)
    until(lambda: bool(server.refused.recent))  # it is noted after the connection was closed
    assert server.refused.recent[-1][1] == "a frame that was altered, repeated or not made with the token"
    assert client.get("secret2") == b"1" and client.delete_key("secret2")


def test_idle_connections_keep_nobody_out_and_take_no_room(server: Server, client: Client, lines: list[str],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.backends.torchrun.serve.PATIENCE", 5.0)
    guests = [knock(server.port) for _ in range(200)]
    start = time.monotonic()
    late = connect(TOKEN, "127.0.0.1", server.port, 10)
    assert late.get("secret") == b"value" and time.monotonic() - start < 4.5
    assert len(server.strangers) <= STRANGERS and len(server.selector.get_map()) <= STRANGERS + 4
    late.close()
    until(lambda: server.refused.count == 200)
    assert all(map(closed, guests))
    for guest in guests:
        guest.close()
    assert len(lines) == LINES and f"more than {STRANGERS} at a time" in lines[0]
    server.refused.look(end=True)
    assert lines[-1] == f"the rendezvous store refused {200 - LINES} more connections"


def test_a_flood_keeps_nobody_out(server: Server, client: Client) -> None:
    stop = threading.Event()

    def flood() -> None:
        held = []
        while not stop.is_set():
            with suppress(OSError):
                held.append(knock(server.port))
                held[-1].sendall(os.urandom(10))
            if len(held) > 100:
                held.pop(0).close()
        for sock in held:
            sock.close()

    def work() -> None:
        try:
            for _ in range(10):
                late = connect(TOKEN, "127.0.0.1", server.port, 10)
                late.set("k", "v")
                assert client.get("k") == b"v" and server.store.delete_key("k")
                late.close()
        finally:
            stop.set()

    start = time.monotonic()
    assert together(work, flood, flood) == [None] * 3
    assert time.monotonic() - start < 30 and server.refused.count > 100
    assert len(server.refused.recent) <= 32


class Tap:
    """Somebody between a client and a server who writes down what crosses, and may change it."""

    def __init__(self, port: int, change: Callable[[bytes, bytes], bytes] = lambda so_far, data: data) -> None:
        self.port, self.change = port, change
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.said, self.answered = b"", b""
        self.threads = [threading.Thread(target=self._run)]
        self.threads[0].start()

    def _run(self) -> None:
        client, self.here = self.listener.accept()[0], None
        server = knock(self.port)
        self.threads.append(threading.Thread(target=self._pass, args=(server, client, "answered")))
        self.threads[1].start()
        self._pass(client, server, "said")
        self.threads[1].join()
        client.close()
        server.close()

    def _pass(self, source: socket.socket, sink: socket.socket, into: str) -> None:
        with suppress(OSError):
            while data := source.recv(100_000):
                if into == "said":
                    data = self.change(self.said, data)
                setattr(self, into, getattr(self, into) + data)
                sink.sendall(data)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.threads[0].join(10)
        assert not self.threads[0].is_alive()
        self.listener.close()


def test_who_listens_on_the_wire_learns_no_token_and_can_replay_nothing(server: Server, client: Client) -> None:
    tap = Tap(server.port)
    tapped = connect(TOKEN, "127.0.0.1", tap.listener.getsockname()[1], 10)
    tapped.set("k", "v")
    assert tapped.add("n", 1) == 1 and tapped.delete_key("k") and tapped.delete_key("n")
    tapped.close()
    tap.close()
    crossed = tap.said + tap.answered
    assert b"add" in crossed   # it is not encrypted, and says so
    assert TOKEN not in crossed and TOKEN.hex().encode() not in crossed
    for pace in (len(tap.said), HELLO, 1):
        before = server.refused.count
        with knock(server.port) as sock, suppress(OSError):
            for i in range(0, len(tap.said), pace):
                sock.sendall(tap.said[i:i + pace])
            sock.settimeout(5)
            while sock.recv(1000):
                pass
        until(lambda before=before: server.refused.count == before + 1)
    assert not client.check(["n"])


@pytest.mark.parametrize("byte", [0, 20, HELLO + 5, HELLO + 40, HELLO + 60])
def test_who_changes_what_crosses_is_found_out(server: Server, client: Client, byte: int) -> None:
    def change(so_far: bytes, data: bytes) -> bytes:
        i = byte - len(so_far)
        return data[:i] + bytes([data[i] ^ 1]) + data[i + 1:] if 0 <= i < len(data) else data

    tap = Tap(server.port, change)
    with pytest.raises(RuntimeError, match="lost|refused|cannot reach"):
        connect(TOKEN, "127.0.0.1", tap.listener.getsockname()[1], 0.5).set("secret", "stolen")
    tap.close()
    until(lambda: server.refused.count == 1)
