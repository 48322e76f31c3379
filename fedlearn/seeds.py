"""Random streams keyed by (seed, purpose, round, client), never by worker or by arrival.

Whoever runs a piece of work, wherever and whenever, draws the same numbers for it. Two different
keys give streams that are independent for all practical purposes (Philox counters under a 128-bit
key made with BLAKE2b).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence


class Key(ISeedSequence):
    """The 128-bit key of a stream, as NumPy takes it: ``Philox(key=...)`` would first ask the system for entropy."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """Return the two words, uint64 [2], that Philox asks for."""
        return np.frombuffer(self.data, "<u8").astype(np.uint64)


def key(seed: int, purpose: str, round: int = 0, client: int = 0) -> bytes:
    """Return the 128-bit key of a stream, little-endian."""
    return blake2b(f"{seed}/{purpose}/{round}/{client}".encode(), digest_size=16).digest()


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator at the start of the stream (seed, purpose, round, client)."""
    words = Key(key(seed, purpose, round, client))
    return np.random.Generator(np.random.Philox(words))  # type: ignore[arg-type]  # the stubs know SeedSequence only


def torch_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed for ``torch.manual_seed``, for code that draws from torch's own stream."""
    return int.from_bytes(key(seed, purpose, round, client), "little") & (2**63 - 1)
