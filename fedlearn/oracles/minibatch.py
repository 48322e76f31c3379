"""Mini-batches for the dense oracle: gathered into buffers that are used again, with targets in the loss's form.

Where all draws of some clients are known, their samples are gathered at once and a mini-batch is a slice of them.
A stack gathers one mini-batch of every client at a time, padded to equal length with weight 0; what else a
mini-batch needs is made for many steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.store import ClientStore
from ..draws import Draws
from .pointwise import Loss, Target

AHEAD_BYTES = 64 * 2**20    # more than this is gathered step by step
ALIGNED = 64                # bytes: BLAS may give other last bits at other addresses
PLANNED = 65_536            # samples of a stack whose targets are made at once


class Batch(NamedTuple):
    """Samples ``x`` [..., n, features] and their transpose, of one client ``alone`` or of ``clients``."""

    alone: bool
    clients: int
    n: int
    x: Tensor
    xt: Tensor
    target: Target


class Plan(NamedTuple):
    """The steps of a stack from ``first`` on: the ``places`` [steps, clients, rows] of samples in the store."""

    first: int
    places: Tensor
    targets: tuple[Tensor, ...]


class Batches:
    """``store`` has ``sizes`` and ``batch(client, index)``; samples are flattened to ``inputs`` numbers.

    ``rows`` is the number of samples to which stacks pad; None, until there is one, means the longest of a step.
    """

    def __init__(self, store: Any, loss: Loss, inputs: int, dtype: torch.dtype, device: torch.device) -> None:
        self.store, self.loss, self.inputs, self.dtype, self.device = store, loss, inputs, dtype, device
        self.rows: int | None = None
        self.clients: Sequence[int] = ()
        self.alone = True
        self.flat = store.features.flatten(1) if _gathers(store) else None   # a view
        self.direct = self.flat is not None and (self.flat.dtype, self.flat.device) == (dtype, device)
        self.draws: Sequence[Draws] = ()
        self.expected: dict[int, tuple[Draws, list[Batch]]] = {}
        self.ahead: list[Batch] = []
        self.plan: Plan | None = None
        self.k = 0
        self.memory: dict[str, Tensor] = {}

    def expect(self, clients: Sequence[int], draws: Sequence[Sequence[Tensor]]) -> None:
        """Gather all mini-batches of clients that will be entered one by one, where that is not too much."""
        self.expected = {}
        known = [(m, d) for m, d in zip(clients, draws, strict=True) if isinstance(d, Draws)]
        if self.flat is None or len(known) < len(clients):
            return
        # Every client's samples begin at an aligned address, so that its bits do not depend on its neighbours.
        unit = ALIGNED // math.gcd(ALIGNED, self.inputs * self.dtype.itemsize)
        starts = [0, *accumulate(-(-len(d.order) // unit) * unit for _, d in known)]
        if starts[-1] * self.inputs * 8 > AHEAD_BYTES:
            return
        rows, weight = np.zeros(starts[-1], dtype=np.int64), np.zeros((starts[-1], 1))
        for (m, d), start in zip(known, starts, strict=False):
            stop = start + len(d.order)
            rows[start:stop] = d.order
            rows[start:stop] += self.store.offsets[m]
            weight[start:stop, 0] = 1 / d.sizes[0] if d.whole else np.repeat(1 / np.array(d.sizes), d.sizes)
        every, per = torch.from_numpy(rows), self.loss.entries
        x = self._gather(every, self._take("ahead", len(rows)))
        minus = self.loss.encode(self._labels(every), self.dtype, -1 / per).t().contiguous()
        minus *= torch.from_numpy(weight).to(self.device, self.dtype)
        for (m, d), start in zip(known, starts, strict=False):
            cuts = [(start + k, start + k + n, n * per) for k, n in zip(d.starts, d.sizes, strict=True)]
            self.expected[m] = d, [Batch(True, 1, stop - begin, x[begin:stop], x[begin:stop].t(),
                                         Target(minus[begin:stop].t(), 1 / entries, entries))
                                   for begin, stop, entries in cuts]

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Tensor]] | None) -> None:
        """Take over one client, or a stack of them with the draws of all their steps where they are known."""
        self.clients = clients
        self.alone = self.rows is None and len(clients) == 1
        self.ahead, self.plan, self.k = [], None, 0
        self.draws = [d for d in draws or () if isinstance(d, Draws)] if self.flat is not None else ()
        if self.alone and self.draws:
            for_it = self.expected.get(clients[0])
            if for_it is None or for_it[0] is not self.draws[0]:
                self.expect(clients, self.draws)
                for_it = self.expected.get(clients[0])
            self.ahead = for_it[1] if for_it else []

    def at(self, draws: Sequence[Tensor]) -> Batch:
        """Return the next mini-batch: an index tensor [batch] for each client that still works."""
        k, self.k = self.k, self.k + 1
        if not self.alone:
            return self._stacked(draws, k) if self.flat is not None else self._fetched(draws)
        if k < len(self.ahead):
            return self.ahead[k]
        return self._batch(*self._samples(self.clients[0], draws[0], "batch"), draws[0].numel())

    def whole(self, client: int, size: int) -> Iterator[Batch]:
        """Yield all samples of a client, ``size`` at a time, weighted so that their gradients add up."""
        n = int(self.store.sizes[client])
        for index in torch.arange(n).split(size):
            yield self._batch(*self._samples(client, index, "whole"), n)

    def _batch(self, x: Tensor, y: Tensor, n: int) -> Batch:
        """Make a mini-batch whose samples have the weight 1/n."""
        entries = n * self.loss.entries
        minus = self.loss.encode(y, self.dtype, -1 / entries)
        return Batch(True, 1, x.shape[0], x, x.t(), Target(minus, 1 / entries, entries))

    def _samples(self, client: int, index: Tensor, buffer: str) -> tuple[Tensor, Tensor]:
        """Return samples [n, inputs] in the named buffer, and their labels."""
        into = self._take(buffer, index.numel())
        if self.flat is None:
            x, y = self.store.batch(client, index)
            return into.copy_(x.reshape(into.shape)), y.to(self.device)
        rows = index + int(self.store.offsets[client])
        return self._gather(rows, into), self._labels(rows)

    def _gather(self, rows: Tensor, into: Tensor) -> Tensor:
        """Return the samples of a ClientStore's rows, written to ``into`` [n, inputs]."""
        assert self.flat is not None
        if self.direct and self.flat.is_cpu:
            return torch.index_select(self.flat, 0, rows, out=into)
        return into.copy_(self.flat.index_select(0, rows.to(self.flat.device)))

    def _labels(self, rows: Tensor) -> Tensor:
        labels = self.store.labels
        return labels.index_select(0, rows.to(labels.device)).to(self.device)

    # --- stacks -------------------------------------------------------------------------------------------------------

    def _stacked(self, draws: Sequence[Tensor], k: int) -> Batch:
        """Return mini-batch k of a stack, as planned with this and some following steps."""
        if not self.draws:
            self.plan = self._lay_out([Draws(index.numpy(), [len(index)]) for index in draws], 0, k)
        elif self.plan is None or k == self.plan.first + len(self.plan.places):
            self.plan = self._lay_out(self.draws[:len(draws)], k, k)
        first, places, targets = self.plan
        held, rows = max(2, len(draws)), places.shape[2]
        x = self._gather(places[k - first, :held].reshape(-1), self._take("batch", held * rows))
        x = x.view(held, rows, self.inputs)
        return Batch(False, len(draws), rows, x, x.mT, Target(*(t[k - first, :held] for t in targets)))

    def _lay_out(self, draws: Sequence[Draws], at: int, first: int) -> Plan:
        """Plan a stack from its draws ``at`` on, which are those of step ``first``."""
        longest = max(max(d.sizes[at:]) for d in draws)
        clients, rows = max(2, len(draws)), self.rows or longest    # a stack of one is computed as two
        _check(longest, rows)
        steps = min(len(draws[0]) - at, max(1, PLANNED // (clients * rows)))
        index = np.empty((steps, clients, rows), dtype=np.int64)
        # A client's padding is its own first sample.
        index[:] = self.store.offsets[[self.clients[min(i, len(draws) - 1)] for i in range(clients)], None]
        count = np.zeros((steps, clients), dtype=np.int64)
        for i, d in enumerate(draws):
            for k, start, size in zip(range(steps), d.starts[at:], d.sizes[at:], strict=False):
                index[k, i, :size] += d.order[start:start + size]
                count[k, i] = size
        every = torch.from_numpy(index)
        return Plan(first, every, self._targets(self._labels(every.view(-1)), count, rows))

    def _fetched(self, draws: Sequence[Tensor]) -> Batch:
        """Return the mini-batch of a stack from a store that is asked client by client."""
        clients, longest = max(2, len(draws)), max(len(index) for index in draws)
        rows = self.rows or longest
        _check(longest, rows)
        count = np.array([[len(index) for index in draws] + [0] * (clients - len(draws))])
        into = self._take("batch", clients * rows).view(clients, rows, self.inputs)
        labels = []
        for i, place in enumerate(into):
            one = min(i, len(draws) - 1)
            x, y = self.store.batch(self.clients[one], draws[one])
            place[:len(x)] = x.reshape(len(x), -1)
            place[len(x):] = place[0]
            labels += [y, y[:1].expand(rows - len(x), *y.shape[1:])]
        targets = self._targets(torch.cat(labels).to(self.device), count, rows)
        return Batch(False, len(draws), rows, into, into.mT, Target(*(t[0] for t in targets)))

    def _targets(self, y: Tensor, count: np.ndarray, rows: int) -> tuple[Tensor, ...]:
        """Return by step the parts of ``Target`` for labels y of [steps, clients, rows] samples.

        ``count`` [steps, clients] says how many of the rows are not padding.
        """
        shape = *count.shape, 1, rows
        entries = np.where(np.arange(rows) < count[..., None, None], count[..., None, None] * self.loss.entries, 0)
        weight = np.divide(1, entries, where=entries > 0, out=np.zeros(shape))
        number, weights = (torch.from_numpy(v).to(self.device, self.dtype) for v in (entries, weight))
        minus = self.loss.encode(y, self.dtype, -1.0).view(-1, *count.shape, rows).permute(1, 2, 0, 3)
        out = torch.empty(minus.shape, dtype=self.dtype, device=self.device)
        return torch.mul(minus, weights, out=out), weights, number

    def _take(self, name: str, size: int) -> Tensor:
        """Return room for ``size`` samples in a buffer that only grows."""
        if name not in self.memory or self.memory[name].shape[0] < size:
            self.memory[name] = torch.empty(size, self.inputs, dtype=self.dtype, device=self.device)
        return self.memory[name].narrow(0, 0, size)


def _check(longest: int, rows: int) -> None:
    if longest > rows:
        raise ValueError(f"found a mini-batch of {longest} samples in a stack of {rows}")


def _gathers(store: Any) -> bool:
    """Say whether samples can be gathered from one tensor without a copy of it."""
    return isinstance(store, ClientStore) and store.features.is_contiguous()
