"""Random streams keyed by (seed, purpose, round, client), never by worker or by arrival.

Whoever runs a piece of work, wherever and whenever, draws the same numbers for it. Two different
keys give streams that are independent for all practical purposes (Philox counters under a 128-bit
key made with BLAKE2b).
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def key(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return the 128-bit key of a stream."""
    text = f"{seed}/{purpose}/{round}/{client}".encode()
    return int.from_bytes(blake2b(text, digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator at the start of the stream (seed, purpose, round, client)."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, round, client)))


def torch_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed for ``torch.manual_seed``, for code that draws from torch's own stream."""
    return key(seed, purpose, round, client) & (2**63 - 1)
