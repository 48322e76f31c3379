"""Damaged inputs for readers: what is done to bytes, many times for each example of hypothesis, which draws seeds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BATCH = 25          # inputs for each example: drawing one takes hypothesis longer than reading a small file
INTERESTING = (b"", b"\0", b"\xff" * 8, b"\x80", b"[" * 60, b"{", b"}", b'"', b"-1", b"NaN", b"1e999", b"null", b"true",
               b"9" * 30, b"\n", b"\xc3\x28", b"../", b"${oc.env:HOME}", b"!!python/object/apply:os.system", b"round-")


def damaged(data: bytes, r: random.Random) -> bytes:
    """Return the bytes with one to three things wrong: flipped, cut, put in, doubled, moved or overwritten."""
    b = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        at = r.randrange(len(b) + 1)
        # Half of what is done is done near the beginning, where the headers are.
        at = min(at, r.randrange(96)) if r.random() < 0.5 else at
        some = b[at:at + r.randint(1, 24)]
        match r.randrange(7):
            case 0 if at < len(b):
                b[at] ^= 1 << r.randrange(8)
            case 1 if at < len(b):
                b[at] = r.randrange(256)
            case 2:
                del b[at:at + r.randint(1, 24)]
            case 3:
                b[at:at] = r.choice(INTERESTING)
            case 4:
                b[at:at] = some
            case 5:
                to = r.randrange(len(b) + 1)
                b[to:to + len(some)] = some
            case _:
                del b[r.randrange(len(b) + 1):]
    return bytes(b)


def many(examples: int, test: Callable[[random.Random], None]) -> None:
    """Run a test so many times, with seeds that hypothesis draws, and which it tells if the test fails."""

    @settings(max_examples=examples // BATCH, deadline=20_000, database=None,
              suppress_health_check=[HealthCheck.too_slow])
    @given(seed=st.integers(0, 2**63))
    def batch(seed: int) -> None:
        r = random.Random(seed)
        for _ in range(BATCH):
            test(r)

    batch()


def mixed(parts: Sequence[bytes], r: random.Random) -> bytes:
    """Return one part, damaged, or the beginning of one and the end of another."""
    if r.random() < 0.8:
        return damaged(r.choice(parts), r)
    one, other = r.choice(parts), r.choice(parts)
    return one[:r.randrange(len(one) + 1)] + other[r.randrange(len(other) + 1):]
