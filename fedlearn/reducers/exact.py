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

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..contracts import Msg
from ..errors import UpdateOverflow
from .layout import DTYPES, Layout, Weights, largest, stack_of

SCALE = 40          # bits after the point in the first limb
LOW = 53            # further bits in the second limb, as many as a float64 can still hold
LIMIT = 2.0**62     # of the sum of the clients' largest scaled entries: one bit below int64's own
CARRY = 512         # uploads after which the second limb, at most 2^52 from each, is carried over
CHUNK = 32_768      # elements that are scaled at a time: stays in the second-level cache
# Adding it to a float64 below 2^11 rounds that to a multiple of 2^-40, which the last bits of the sum then count.
ROUND = 1.5 * 2.0**(52 - SCALE)
ROUND_BITS = int(np.float64(ROUND).view(np.int64))


class ExactSum:
    """A partial sum of weighted uploads, in place; ``buffer`` may be added to another's."""

    most: ClassVar[float] = LIMIT / 2.0**SCALE     # that the clients' largest entries may add up to

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.buffer = torch.zeros(0, dtype=torch.int64)
        self.bound = 0.0
        self.uncarried = 0
        self.offset = 0     # how often ROUND_BITS are in every entry of one limb: ``carry`` takes them out
        self.scratch = np.empty(0)

    def shape_as(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        """Allocate for a layout; the buffer is int64 [sum of numel * limbs]."""
        self.layout = layout
        self.buffer = torch.zeros(sum(n * _limbs(dtype) for _, n, dtype in layout.parts), dtype=torch.int64,
                                  device=device)

    def add(self, msg: Msg, weights: Weights, client: int, round: int) -> None:
        """Add weights[name] * msg[name] of one client for every name; see ``add_stack``."""
        self.add_stack(*stack_of(msg, weights), [client], round)

    def add_stack(self, msg: Msg, weights: Mapping[str, Sequence[float]], clients: Sequence[int], round: int,
                  peaks: Sequence[float] | None = None) -> None:
        """Add the sum over i of weights[name][i] * msg[name][i] for every name; msg[name] is [clients, numel].

        ``peaks`` are what ``peaks_of`` says of them, where somebody looked already and found them finite.

        Raises:
            NonFiniteUpdate: if an entry is NaN or infinite.
            UpdateOverflow: if the sum could leave the range of int64.
            ClientError: if the layout differs from that of the uploads before it.
        """
        if len(clients) > CARRY:
            for i in range(0, len(clients), CARRY):
                some = slice(i, i + CARRY)
                self.add_stack({name: v[some] for name, v in msg.items()},
                               {name: w[some] for name, w in weights.items()}, clients[some], round,
                               None if peaks is None else peaks[some])
            return
        layout = Layout.of(msg, clients[0], round)
        if self.layout is None:
            self.shape_as(layout, next(iter(msg.values())).device)
        else:
            self.layout.same(layout, clients[0], round)
        # Check before the first write, so that a refused upload has not touched the sum.
        peaks = largest(msg, weights, clients, round) if peaks is None else peaks
        bound = self.bound
        for client, peak in zip(clients, peaks, strict=True):
            bound += peak * 2.0**SCALE
            if bound >= LIMIT:
                raise UpdateOverflow(client, round, f"an entry of size {peak:.3g} takes the exact sum out of range "
                                     f"(the clients' largest entries may add up to {LIMIT / 2.0**SCALE:.3g}); lower "
                                     "the client step size, clip the updates, or use reduce=fast")
        self.bound = bound
        if self.uncarried + len(clients) > CARRY:
            self.carry()
        rounds = self.buffer.is_cpu and max(peaks) * 2.0**SCALE < 2.0**51
        self.offset += rounds * len(clients)
        start = 0
        for name, numel, dtype in layout.parts:
            into = self.buffer[start:start + numel * _limbs(dtype)]
            if rounds and dtype == "float32":
                self._add_rounded(into.numpy(), msg[name].detach().numpy(), weights[name])
            else:
                _accumulate(into, msg[name].detach(), weights[name])
            start += len(into)
        self.uncarried += len(clients)

    def carry(self) -> None:
        """Write each second limb within half a unit of the first; call it before adding two buffers up.

        There is one way to write a sum so: partial sums of equal value have equal bits afterwards.
        """
        # Modulo 2^64, as all sums here.
        offset = (self.offset * ROUND_BITS + 2**63) % 2**64 - 2**63
        self.offset = 0
        for limbs, _, _ in self._parts():
            if limbs.shape[0] == 1 and offset:
                limbs[0] -= offset
            elif limbs.shape[0] == 2:
                for some in limbs.split(self._step(limbs), 1):
                    over = (some[1] + 2 ** (LOW - 1)) >> LOW
                    some[0] += over
                    some[1] -= over << LOW
        self.uncarried = 0

    def mean(self, denominators: Weights) -> dict[str, Tensor]:
        """Return sum / denominators[name] for every name, in the dtype of the uploads."""
        self.carry()
        return self.mean_of_part(denominators, slice(None))

    def mean_of_part(self, denominators: Weights, part: slice) -> dict[str, Tensor]:
        """Return these entries of the mean of every name, after ``carry``; nothing larger than them is allocated."""
        means = {}
        for limbs, name, dtype in self._parts():
            of = limbs[:, part]
            means[name] = torch.empty(of.shape[1], dtype=DTYPES[dtype], device=of.device)
            step = self._step(of)
            for some, into in zip(of.split(step, 1), means[name].split(step), strict=True):
                into.copy_(_decode(some).div_(denominators[name]))
        return means

    def _step(self, limbs: Tensor) -> int:
        return CHUNK if limbs.is_cpu else max(1, limbs.shape[1])

    def _add_rounded(self, into: np.ndarray, rows: np.ndarray, weights: Sequence[float]) -> None:
        """Add float32 rows whose scaled entries are below 2^51, as much of them at a time as stays in the cache."""
        n, numel = rows.shape
        together = max(1, CHUNK // max(1, numel))
        if self.scratch.size < min(n * numel, CHUNK):
            self.scratch = np.empty(min(n * numel, CHUNK))
        scale, plain = np.array(weights)[:, None], all(weight == 1 for weight in weights)
        for i in range(0, n, together):
            for a in range(0, numel, CHUNK):
                part = rows[i:i + together, a:a + CHUNK]
                scaled = self.scratch[:part.size].reshape(part.shape)
                scaled[...] = part
                if not plain:
                    np.multiply(scaled, scale[i:i + together], out=scaled)
                np.add(scaled, ROUND, out=scaled)
                bits = scaled.view(np.int64)
                np.add(into[a:a + CHUNK], bits[0] if len(bits) == 1 else bits.sum(0), out=into[a:a + CHUNK])

    def _parts(self) -> Iterator[tuple[Tensor, str, str]]:
        """Yield (limbs [1 or 2, numel], name, dtype) of every vector."""
        start = 0
        for name, numel, dtype in () if self.layout is None else self.layout.parts:
            limbs = self.buffer[start:start + numel * _limbs(dtype)].view(_limbs(dtype), numel)
            start += limbs.numel()
            yield limbs, name, dtype


def _limbs(dtype: str) -> int:
    return 2 if dtype == "float64" else 1


def _accumulate(into: Tensor, rows: Tensor, weights: Sequence[float]) -> None:
    """Add weighted rows [clients, numel], as much of them at a time as stays in the cache."""
    wide, n = rows.dtype == torch.float64, rows.shape[1]
    together = max(1, CHUNK // max(1, n))
    # A power of two scales exactly: the product with the weight is the one rounding before this one.
    scale = torch.tensor(weights, dtype=torch.float64, device=rows.device).unsqueeze(1) * 2.0**SCALE
    for i in range(0, len(rows), together):
        for a in range(0, n, CHUNK):
            b = min(a + CHUNK, n)
            scaled = rows[i:i + together, a:b].to(torch.float64, copy=True).mul_(scale[i:i + together])
            whole = scaled.round()
            into[a:b].add_(whole.to(torch.int64).sum(0))
            if wide:
                rest = scaled.sub_(whole).mul_(2.0**LOW)
                into[n + a:n + b].add_(rest.round_().to(torch.int64).sum(0))


def _decode(limbs: Tensor) -> Tensor:
    high = limbs[0].to(torch.float64)
    if limbs.shape[0] == 1:
        return high.mul_(2.0**-SCALE)
    # Above 2^53 the conversion rounds: carry what it dropped down to the second limb.
    dropped = (limbs[0] - high.to(torch.int64)).to(torch.float64)
    low = limbs[1].to(torch.float64).mul_(2.0**-LOW).add_(dropped).mul_(2.0**-SCALE)
    return high.mul_(2.0**-SCALE).add_(low)
