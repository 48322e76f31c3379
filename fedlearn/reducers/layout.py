"""The layout of a sum: which named vectors, how long, of which dtype, in one flat buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        """Return the layout of the messages of a stack of clients, [clients, numel]; ``client`` is one of them.

        Raises:
            ClientError: if a client's vector is not 1-D float32 or float64.
        """
        parts = []
        for name in sorted(msg):
            v = msg[name]
            dtype = NAMES.get(v.dtype)
            if dtype is None or v.dim() != 2:
                found = str(v.dtype).removeprefix("torch.")
                raise ClientError(client, round, f"upload {name!r} is {found} of shape {tuple(v.shape[1:])}; "
                                  "allowed: 1-D float32 or float64 vectors")
            parts.append((name, v.shape[1], dtype))
        return cls(tuple(parts))

    @classmethod
    def from_json(cls, parts: Any) -> Layout:
        """Rebuild a layout from the lists that JSON made of its parts."""
        return cls(tuple((str(name), int(numel), str(dtype)) for name, numel, dtype in parts))

    @property
    def bytes(self) -> int:
        """The bytes of one client's message."""
        return sum(numel * DTYPES[dtype].itemsize for _, numel, dtype in self.parts)

    def same(self, other: Layout, client: int, round: int) -> None:
        """Check that a client's upload has this layout.

        Raises:
            ClientError: naming the client, what it sent and what the others sent.
        """
        if self != other:
            raise ClientError(client, round, f"upload {other.parts} differs from the others' {self.parts}")


Weights = Mapping[str, float]


def peaks_of(msg: Msg, weights: Mapping[str, Sequence[float]], count: int) -> list[float]:
    """Return the largest absolute weighted entry of each of ``count`` messages [count, numel].

    It is infinite where an entry is NaN or infinite.
    """
    peaks = [0.0] * count
    for name in sorted(msg):
        v = msg[name]
        if not v.numel():
            continue
        if v.is_cpu:    # NumPy's two passes along rows are quicker than torch's one
            rows = v.detach().numpy()
            low, high = rows.min(1).tolist(), rows.max(1).tolist()
        else:
            low, high = (end.tolist() for end in v.aminmax(dim=1))
        for i, weight in enumerate(weights[name]):
            here = max(-low[i], high[i]) * abs(weight)
            # A NaN anywhere makes both ends NaN, which is not less than anything.
            peaks[i] = max(peaks[i], here) if here < float("inf") else float("inf")
    return peaks


def largest(msg: Msg, weights: Mapping[str, Sequence[float]], clients: Sequence[int], round: int) -> list[float]:
    """Return what ``peaks_of`` does, where all of it is finite.

    Raises:
        NonFiniteUpdate: if an entry is NaN or infinite, naming the client and the round.
    """
    peaks = peaks_of(msg, weights, len(clients))
    for i, (client, peak) in enumerate(zip(clients, peaks, strict=True)):
        if peak == float("inf"):
            raise non_finite(msg, i, client, round)
    return peaks


def non_finite(msg: Msg, row: int, client: int, round: int, since: str = "") -> NonFiniteUpdate:
    """Return the error for a message [clients, numel] of which a row is not finite; ``since`` says why."""
    for name in sorted(msg):
        v = msg[name][row]
        if bad := int((~v.isfinite()).sum()):
            return NonFiniteUpdate(client, round, f"{bad} of {v.numel()} entries of upload {name!r} are NaN or "
                                   f"infinite{since}; lower the client step size, or clip the updates")
    return NonFiniteUpdate(client, round, f"its upload times its weight is infinite{since}; lower the client step "
                           "size, or clip the updates")


def stack_of(msg: Msg, weights: Weights) -> tuple[Msg, dict[str, list[float]]]:
    """Return a client's message and weights as those of a stack of one."""
    return {name: v.unsqueeze(0) for name, v in msg.items()}, {name: [weights[name]] for name in msg}
