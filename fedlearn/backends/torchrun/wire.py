"""What crosses a connection to the rendezvous store: a proof by both ends, then sealed frames.

    client -> server   MAGIC, a fresh nonce
    server -> client   a fresh nonce, HMAC(token, "server", both nonces)
    client -> server   HMAC(token, "client", both nonces)
    server -> client   the first frame, empty: the client is let in
    then both ways     length (4 bytes), body, HMAC(key, number, body)

Who does not know the token can make none of the proofs, and one that was overheard fits no other connection. The key
of a direction comes from the token and both nonces; the number counts that direction's frames: what is altered, left
out, put in between, repeated or taken from elsewhere does not verify. Frames are sealed, not encrypted. Their bodies
are fields of plain bytes: nothing that is read here is ever executed or unpickled.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from collections.abc import Iterable
from itertools import count

MAGIC = b"fedlearn/1\n"
NONCE = PROOF = 32          # bytes; HMAC-SHA256
HELLO = len(MAGIC) + NONCE
LONGEST = 1 << 20           # bytes of a body
PIECE = 1 << 16             # bytes that are taken from a socket at a time


class Refused(Exception):
    """What was wrong with what the other end of a connection said."""


class Impostor(RuntimeError):
    """The one who serves a store did not prove that it knows the token."""


def prove(token: bytes, role: str, *about: bytes) -> bytes:
    """Return the proof in one role that one knows the token: nobody else can make it."""
    return hmac.digest(token, b"".join(map(_field, (b"fedlearn", role.encode(), *about))), "sha256")


def same(one: bytes, other: bytes) -> bool:
    """Compare two proofs in a time that tells nothing about where they differ."""
    return hmac.compare_digest(one, other)


def to_body(fields: Iterable[bytes]) -> bytes:
    """Return fields as the body of one frame."""
    return b"".join(map(_field, fields))


def from_body(body: bytes) -> list[bytes]:
    """Return the fields of a body.

    Raises:
        Refused: if it is not made of fields.
    """
    fields, start = [], 0
    while start < len(body):
        end = start + 4
        if end <= len(body):
            end += struct.unpack_from(">I", body, start)[0]
        if start + 4 > len(body) or end > len(body):
            raise Refused("a frame whose fields do not fit it")
        fields.append(body[start + 4:end])
        start = end
    return fields


class Seal:
    """The frames of one direction of one connection."""

    def __init__(self, key: bytes) -> None:
        self.key, self.numbers, self.read = key, count(), bytearray()

    def close(self, fields: Iterable[bytes]) -> bytes:
        """Return the next frame, with these fields.

        Raises:
            ValueError: if it would be longer than the other end takes.
        """
        body = to_body(fields)
        if len(body) > LONGEST:
            raise ValueError(f"a frame of {len(body)} bytes, where at most {LONGEST} are taken")
        return _field(body) + self._mac(body)

    def open(self) -> list[bytes] | None:
        """Return the fields of the next frame in ``read``; nothing if it is not all there yet.

        Raises:
            Refused: if it is not the frame that the other end sealed as its next.
        """
        if len(self.read) < 4:
            return None
        (size,) = struct.unpack_from(">I", self.read)
        if size > LONGEST:
            raise Refused(f"a frame of {size} bytes, where at most {LONGEST} are taken")
        if len(self.read) < 4 + size + PROOF:
            return None
        body, mac = bytes(self.read[4:4 + size]), bytes(self.read[4 + size:4 + size + PROOF])
        if not same(mac, self._mac(body)):
            raise Refused("a frame that was altered, repeated or not made with the token")
        del self.read[:4 + size + PROOF]
        return from_body(body)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self.key, struct.pack(">Q", next(self.numbers)) + body, "sha256")


class Welcome:
    """The server's side of the proof: bytes in, bytes out, until both ends are known to each other."""

    def __init__(self, token: bytes) -> None:
        self.token, self.read, self.nonces = token, bytearray(), b""
        self.seals: tuple[Seal, Seal] | None = None   # what comes in, what goes out

    def take(self, data: bytes) -> bytes:
        """Take what the client said, and return what to answer.

        Raises:
            Refused: as soon as it cannot be one of ours.
        """
        self.read += data
        answer = b""
        if not self.nonces:
            if self.read[:len(MAGIC)] != MAGIC[:len(self.read)]:
                raise Refused(f"it does not speak this protocol (it began with {bytes(self.read[:16])!r})")
            if len(self.read) > HELLO:
                raise Refused("it said more than its turn allows")
            if len(self.read) < HELLO:
                return b""
            mine = secrets.token_bytes(NONCE)
            self.nonces = bytes(self.read[len(MAGIC):]) + mine
            answer = mine + prove(self.token, "server", self.nonces)
            self.read.clear()
        elif len(self.read) >= PROOF:
            if not same(bytes(self.read[:PROOF]), prove(self.token, "client", self.nonces)):
                raise Refused("it did not prove that it knows the token")
            theirs, ours = _seals(self.token, self.nonces)
            theirs.read = self.read[PROOF:]
            self.seals = theirs, ours
            answer = ours.close([])
        return answer


def introduce(sock: socket.socket, token: bytes) -> tuple[Seal, Seal]:
    """Be the client in the proof; return the seals of what comes in and of what goes out.

    Raises:
        Impostor: if the other end does not know the token.
        Refused: if somebody changed what it said after.
        OSError: if the connection is lost or times out, or the other end refused this one.
    """
    mine = secrets.token_bytes(NONCE)
    sock.sendall(MAGIC + mine)
    answer = b""
    while len(answer) < NONCE + PROOF:
        answer += hear(sock, NONCE + PROOF - len(answer))
    nonces = mine + answer[:NONCE]
    if not same(answer[NONCE:], prove(token, "server", nonces)):
        raise Impostor("it did not prove that it knows the token")
    sock.sendall(prove(token, "client", nonces))
    ours, theirs = _seals(token, nonces)
    while theirs.open() is None:
        theirs.read += hear(sock)
    return theirs, ours


def hear(sock: socket.socket, most: int = PIECE) -> bytes:
    """Return what comes next.

    Raises:
        ConnectionResetError: if nothing does, because the other end closed.
    """
    if data := sock.recv(most):
        return data
    raise ConnectionResetError("the other end closed the connection")


def _seals(token: bytes, nonces: bytes) -> tuple[Seal, Seal]:
    return Seal(prove(token, "from client", nonces)), Seal(prove(token, "from server", nonces))


def _field(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
