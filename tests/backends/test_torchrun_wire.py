"""What crosses a connection to the rendezvous store: whatever was altered, or said by a stranger, is refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

import pytest
from backends.rendezvous import TOKEN, serve_once
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.backends.torchrun import serve
from fedlearn.backends.torchrun.store import connect
from fedlearn.backends.torchrun.table import LINES, Refusals
from fedlearn.backends.torchrun.wire import (
    HELLO,
    LONGEST,
    MAGIC,
    NONCE,
    Impostor,
    Refused,
    Seal,
    Welcome,
    from_body,
    prove,
    to_body,
)


def seals() -> tuple[Seal, Seal]:
    return Seal(b"key"), Seal(b"key")


def heard(stream: bytes, cuts: Sequence[int] = ()) -> tuple[list[list[bytes]], str]:
    """Return the frames that are read off a stream that arrives in pieces, and why no more are."""
    seal, frames = Seal(b"key"), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        seal.read += stream[start:end]
        try:
            while (fields := seal.open()) is not None:
                frames.append(fields)
        except Refused as e:
            return frames, str(e)
    return frames, ""


FRAMES = st.lists(st.lists(st.binary(max_size=20), max_size=4), min_size=1, max_size=5)


def sealed(frames: Sequence[Sequence[bytes]]) -> list[bytes]:
    seal = Seal(b"key")
    return [seal.close(fields) for fields in frames]


@given(FRAMES, st.data())
def test_frames_arrive_in_any_pieces(frames: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(sealed(frames))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    assert heard(stream, cuts) == (frames, "")


@settings(max_examples=300)
@given(FRAMES, st.data())
def test_altered_frames_are_refused_and_never_read(frames: list[list[bytes]], data: st.DataObject) -> None:
    pieces = sealed(frames)
    stream = b"".join(pieces)
    how = data.draw(st.sampled_from(["flip", "insert", "cut out", "replace", "repeat", "swap", "leave out"]))
    i = data.draw(st.integers(0, len(stream) - 1))
    if how == "flip":
        altered = stream[:i] + bytes([stream[i] ^ data.draw(st.integers(1, 255))]) + stream[i + 1:]
    elif how == "insert":
        altered = stream[:i] + data.draw(st.binary(min_size=1, max_size=50)) + stream[i:]
    elif how == "cut out":
        altered = stream[:i] + stream[i + data.draw(st.integers(1, 50)):]
    elif how == "replace":
        altered = data.draw(st.binary(max_size=200))
    else:
        k = data.draw(st.integers(0, len(pieces) - 1))
        if how == "repeat":
            pieces.insert(k, pieces[k])
        elif how == "swap":
            pieces[k], pieces[-1] = pieces[-1], pieces[k]
        else:
            del pieces[k]
        altered = b"".join(pieces)
    got, why = heard(altered, data.draw(st.lists(st.integers(0, len(altered)), max_size=3)))
    assert got == frames[:len(got)]   # what is read is what was sent, up to where it was altered
    if not stream.startswith(altered) and not altered.startswith(stream):
        assert len(got) < len(frames) or why
    if altered.startswith(stream) and len(altered) >= len(stream) + 4 + NONCE:
        assert why or int.from_bytes(altered[len(stream):len(stream) + 4]) > len(altered) - len(stream) - 36


@given(st.binary(max_size=100))
def test_a_body_is_fields_or_refused(body: bytes) -> None:
    with suppress(Refused):
        assert to_body(from_body(body)) == body


@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_whatever_a_stranger_says_opens_nothing(pieces: list[bytes], begun: bool) -> None:
    welcome = Welcome(TOKEN)
    try:
        if begun:
            assert len(welcome.take(MAGIC + bytes(NONCE))) == 2 * NONCE
        for piece in pieces:
            welcome.take(piece)
            assert len(welcome.read) <= HELLO
    except Refused:
        pass
    assert welcome.seals is None


def test_a_huge_frame_is_refused_by_its_first_bytes() -> None:
    seal = Seal(b"key")
    seal.read += (LONGEST + 1).to_bytes(4)
    with pytest.raises(Refused, match=f"a frame of {LONGEST + 1} bytes"):
        seal.open()
    with pytest.raises(ValueError, match="at most"):
        Seal(b"key").close([bytes(LONGEST)])


def test_the_two_directions_and_two_connections_are_sealed_apart() -> None:
    def session() -> tuple[Seal, Seal]:
        welcome, mine = Welcome(TOKEN), os.urandom(NONCE)
        answer = welcome.take(MAGIC + mine)
        nonces = mine + answer[:NONCE]
        assert answer[NONCE:] == prove(TOKEN, "server", nonces)
        assert welcome.take(prove(TOKEN, "client", nonces)) and welcome.seals is not None
        return welcome.seals

    (one_in, one_out), (other_in, other_out) = session(), session()
    assert len({one_in.key, one_out.key, other_in.key, other_out.key, TOKEN}) == 5


def test_the_log_of_strangers_is_short() -> None:
    lines: list[str] = []
    refusals = Refusals(lines.append)
    for i in range(1000):
        refusals.note("here", f"there:{i}", "garbage")
    assert refusals.count == 1000 and len(refusals.recent) == 32 and len(lines) == LINES
    refusals.since -= 100
    refusals.note("here", "there", "garbage")
    assert lines[LINES] == f"the rendezvous store refused {1000 - LINES} more connections"
    assert lines[-1] == "the rendezvous store at here refused a connection from there: garbage"


def test_a_stranger_has_seconds_to_prove_itself() -> None:
    assert 1 <= serve.PATIENCE <= 10
    with pytest.raises(Impostor), serve_once(b"\0" * 64) as port:
        connect(TOKEN, "127.0.0.1", port, 5)
