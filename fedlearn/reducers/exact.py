"""The exact sum: int64 fixed point, so that the order of addition does not matter.

Each client's weighted vector is multiplied by 2^40 and rounded **once** to integers; integers are
then added, which is associative, so any placement and any order of arrival give the same bits. A
float32 vector takes one int64 limb (absolute rounding error at most 2^-41 = 4.5e-13 per client).
A float64 vector takes two: the second holds what the first rounded away, in units of 2^-93, so that
nothing of a value above 2^-41 is lost. What gathers in the second limb is carried over to the first before it
could wrap around, which changes how the sum is written and not what it is.

The sum of the largest entries of all clients must stay below 2^62 / 2^40 = 4.2 million; a sum that
could wrap around is refused, never returned.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..contracts import Msg
from ..errors import UpdateOverflow
from .layout import DTYPES, Layout, Weights, largest

SCALE = 40          # bits after the point in the first limb
LOW = 53            # further bits in the second limb, as many as a float64 can still hold
LIMIT = 2.0**62     # of the sum of the clients' largest scaled entries: one bit below int64's own
CARRY = 512         # uploads after which the second limb, at most 2^52 from each, is carried over
CHUNK = 65_536      # elements that are scaled at a time: stays in the second-level cache


class ExactSum:
    """A partial sum of weighted uploads, in place; ``buffer`` may be added to another's."""

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.buffer = torch.zeros(0, dtype=torch.int64)
        self.bound = 0.0
        self.uncarried = 0

    def shape_as(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        """Allocate for a layout; the buffer is int64 [sum of numel * limbs]."""
        self.layout = layout
        self.buffer = torch.zeros(sum(n * _limbs(dtype) for _, n, dtype in layout.parts), dtype=torch.int64,
                                  device=device)

    def add(self, msg: Msg, weights: Weights, client: int, round: int) -> None:
        """Add weights[name] * msg[name] for every name; a client without uploads is not added.

        Raises:
            NonFiniteUpdate: if an entry is NaN or infinite.
            UpdateOverflow: if the sum could leave the range of int64.
            ClientError: if the layout differs from that of the uploads before it.
        """
        layout = Layout.of(msg, client, round)
        if self.layout is None:
            self.shape_as(layout, next(iter(msg.values())).device)
        else:
            self.layout.same(layout, client, round)
        # Check before the first write, so that a refused upload has not touched the sum.
        peak = largest(msg, weights, client, round)
        self.bound += peak * 2.0**SCALE
        if self.bound >= LIMIT:
            raise UpdateOverflow(client, round, f"an entry of size {peak:.3g} takes the exact sum out of range "
                                 f"(the clients' largest entries may add up to {LIMIT / 2.0**SCALE:.3g}); lower the "
                                 "client step size, clip the updates, or use reduce=fast")
        start = 0
        for name, numel, dtype in layout.parts:
            size = numel * _limbs(dtype)
            _accumulate(self.buffer[start:start + size], msg[name], weights[name])
            start += size
        self.uncarried += 1
        if self.uncarried == CARRY:
            self.carry()

    def carry(self) -> None:
        """Write each second limb within half a unit of the first; call it before adding two buffers up.

        There is one way to write a sum so: partial sums of equal value have equal bits afterwards.
        """
        for limbs, _, _ in self._parts():
            if limbs.shape[0] == 2:
                over = (limbs[1] + 2 ** (LOW - 1)) >> LOW
                limbs[0] += over
                limbs[1] -= over << LOW
        self.uncarried = 0

    def mean(self, denominators: Weights) -> dict[str, Tensor]:
        """Return sum / denominators[name] for every name, in the dtype of the uploads."""
        self.carry()
        return {name: _decode(limbs).div_(denominators[name]).to(DTYPES[dtype])
                for limbs, name, dtype in self._parts()}

    def _parts(self) -> Iterator[tuple[Tensor, str, str]]:
        """Yield (limbs [1 or 2, numel], name, dtype) of every vector."""
        start = 0
        for name, numel, dtype in () if self.layout is None else self.layout.parts:
            limbs = self.buffer[start:start + numel * _limbs(dtype)].view(_limbs(dtype), numel)
            start += limbs.numel()
            yield limbs, name, dtype


def _limbs(dtype: str) -> int:
    return 2 if dtype == "float64" else 1


def _accumulate(into: Tensor, v: Tensor, weight: float) -> None:
    wide = v.dtype == torch.float64
    n = v.numel()
    v = v.detach()
    for a in range(0, n, CHUNK):
        b = min(a + CHUNK, n)
        # A power of two scales exactly: the product with the weight is the one rounding before this one.
        scaled = v[a:b].to(torch.float64, copy=True).mul_(weight * 2.0**SCALE)
        if wide:
            whole = scaled.round()
            into[a:b].add_(whole.to(torch.int64))
            rest = scaled.sub_(whole).mul_(2.0**LOW)
            into[n + a:n + b].add_(rest.round_().to(torch.int64))
        else:
            into[a:b].add_(scaled.round_().to(torch.int64))


def _decode(limbs: Tensor) -> Tensor:
    high = limbs[0].to(torch.float64)
    if limbs.shape[0] == 1:
        return high.mul_(2.0**-SCALE)
    # Above 2^53 the conversion rounds: carry what it dropped down to the second limb.
    dropped = (limbs[0] - high.to(torch.int64)).to(torch.float64)
    low = limbs[1].to(torch.float64).mul_(2.0**-LOW).add_(dropped).mul_(2.0**-SCALE)
    return high.mul_(2.0**-SCALE).add_(low)
