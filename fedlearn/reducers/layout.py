"""The layout of a sum: which named vectors, how long, of which dtype, in one flat buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..contracts import Msg
from ..errors import ClientError, NonFiniteUpdate

DTYPES = {"float32": torch.float32, "float64": torch.float64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Layout:
    """Named vectors in the order of their names: ``(name, numel, dtype)`` each."""

    parts: tuple[tuple[str, int, str], ...]

    @classmethod
    def of(cls, msg: Msg, client: int, round: int) -> Layout:
        """Return the layout of a message.

        Raises:
            ClientError: if a vector is not 1-D float32 or float64.
        """
        parts = []
        for name in sorted(msg):
            v = msg[name]
            dtype = NAMES.get(v.dtype)
            if dtype is None or v.dim() != 1:
                found = str(v.dtype).removeprefix("torch.")
                raise ClientError(client, round, f"upload {name!r} is {found} of shape {tuple(v.shape)}; "
                                  "allowed: 1-D float32 or float64 vectors")
            parts.append((name, v.numel(), dtype))
        return cls(tuple(parts))

    @classmethod
    def from_json(cls, parts: Any) -> Layout:
        """Rebuild a layout from the lists that JSON made of its parts."""
        return cls(tuple((str(name), int(numel), str(dtype)) for name, numel, dtype in parts))

    def same(self, other: Layout, client: int, round: int) -> None:
        """Check that a client's upload has this layout.

        Raises:
            ClientError: naming the client, what it sent and what the others sent.
        """
        if self != other:
            raise ClientError(client, round, f"upload {other.parts} differs from the others' {self.parts}")


Weights = Mapping[str, float]


def largest(msg: Msg, weights: Weights, client: int, round: int) -> float:
    """Return the largest absolute weighted entry of a message, in one pass over each vector.

    Raises:
        NonFiniteUpdate: if an entry is NaN or infinite, naming the client and the round.
    """
    peak = 0.0
    for name in sorted(msg):
        v = msg[name]
        if not v.numel():
            continue
        low, high = v.aminmax()
        here = max(-float(low), float(high)) * abs(weights[name])
        # A NaN anywhere makes both ends NaN, which is not less than anything.
        if not here < float("inf"):
            bad = int((~v.isfinite()).sum())
            raise NonFiniteUpdate(client, round, f"{bad} of {v.numel()} entries of upload {name!r} are NaN or "
                                  "infinite; lower the client step size, or clip the updates")
        peak = max(peak, here)
    return peak
