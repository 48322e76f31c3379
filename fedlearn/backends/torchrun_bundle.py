"""Words and small vectors as the bytes of one tensor, for one collective."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Bytes up to which a vector travels with the words: the copy costs less than a collective. Measured on 2 ranks of one
# host, a larger one takes in shared memory 0.8 to 0.9 of its time through gloo just above (65,536 float32), 0.6 with
# 300,000 and 0.3 with 26 million: what does not travel with the words is always worth sharing.
SMALL = 1 << 18
HEAD = struct.Struct("<qq")   # of a bundle: its length, and that of its words


def bundle(words: Any, vectors: Sequence[Tensor] = ()) -> Tensor:
    """Return something that JSON can hold, and vectors, as bytes in one tensor."""
    text = json.dumps(words).encode()
    parts = [v.reshape(-1).view(torch.uint8).numpy().data for v in vectors]
    whole = HEAD.size + len(text) + sum(map(len, parts))
    return torch.frombuffer(bytearray(b"".join([HEAD.pack(whole, len(text)), text, *parts])), dtype=torch.uint8)


def unbundle(said: Tensor) -> tuple[Any, Tensor]:
    """Return the words of a bundle and the bytes of its vectors; what lies behind it does not matter."""
    whole, text = HEAD.unpack(said[:HEAD.size].numpy().tobytes())
    start = HEAD.size + text
    return json.loads(said[HEAD.size:start].numpy().tobytes()), said[start:whole]


def length(said: Tensor) -> int:
    """Return the length of a bundle in bytes, also when only its beginning is there."""
    return HEAD.unpack(said[:HEAD.size].numpy().tobytes())[0]


def room_for(size: int) -> int:
    """Return a block's size for bundles of about this length, so that they seldom outgrow it."""
    return 1 << max(12, (size + size // 4).bit_length())
