"""Mini-batches for the dense oracle: gathered into buffers that are used again, with targets in the loss's form.

Where all draws of a client are known when its work begins, its samples are gathered once and a mini-batch is a
slice of them. A stack gathers one mini-batch of every client at a time, padded to equal length with weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.store import ClientStore
from .pointwise import Loss, Target

AHEAD_BYTES = 64 * 2**20    # more than this of one client is gathered step by step


class Batch(NamedTuple):
    """Samples ``x`` [..., n, features] and their transpose, of one client ``alone`` or of ``clients``."""

    alone: bool
    clients: int
    n: int
    x: Tensor
    xt: Tensor
    target: Target


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
        self.planned: Sequence[Tensor] = ()
        self.ahead: list[Batch] = []
        self.k = 0
        self.memory: dict[str, Tensor] = {}

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Tensor]] | None) -> None:
        """Take over one client or a stack; gather ahead what the draws say, where that is not too much."""
        self.clients = clients
        self.alone = self.rows is None and len(clients) == 1
        self.planned, self.ahead, self.k = (), [], 0
        if self.alone and self.flat is not None and draws is not None:
            self._gather_ahead(draws[0])

    def at(self, draws: Sequence[Tensor]) -> Batch:
        """Return the next mini-batch: an index tensor [batch] for each client that still works."""
        if not self.alone:
            return self._stacked(draws)
        k, self.k = self.k, self.k + 1
        if k < len(self.ahead) and draws[0] is self.planned[k]:
            return self.ahead[k]
        return self._batch(*self._samples(self.clients[0], draws[0], "batch"), draws[0].numel())

    def whole(self, client: int, size: int) -> Iterator[Batch]:
        """Yield all samples of a client, ``size`` at a time, weighted so that their gradients add up."""
        n = int(self.store.sizes[client])
        for index in torch.arange(n).split(size):
            yield self._batch(*self._samples(client, index, "whole"), n)

    def _gather_ahead(self, draws: Sequence[Tensor]) -> None:
        first, sizes = draws[0], [index.numel() for index in draws]
        if sum(sizes) * self.inputs * 8 > AHEAD_BYTES:
            return
        self.planned = draws
        if len(draws) == 1 or draws[1] is first:    # the whole data at each step
            self.ahead = [self._batch(*self._samples(self.clients[0], first, "ahead"), sizes[0])] * len(draws)
            return
        x, y = self._samples(self.clients[0], torch.cat(list(draws)), "ahead")
        most, per = sizes[0], self.loss.entries
        minus = self.loss.encode(y, self.dtype, -1 / (most * per)).split_with_sizes(sizes, 1)
        pieces = zip(sizes, x.split_with_sizes(sizes), x.t().split_with_sizes(sizes, 1), minus, strict=True)
        start = 0
        for n, xs, xt, m in pieces:
            if n != most:
                m = self.loss.encode(y[start:start + n], self.dtype, -1 / (n * per))
            self.ahead.append(Batch(True, 1, n, xs, xt, Target(m, 1 / (n * per), n * per)))
            start += n

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
        return self._gather(index + int(self.store.offsets[client]), into)

    def _gather(self, rows: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples, written to ``into`` [n, inputs], and labels of a ClientStore's rows."""
        assert self.flat is not None
        if not self.flat.is_cpu:
            rows = rows.to(self.flat.device)
        if self.direct:
            return torch.index_select(self.flat, 0, rows, out=into), self.store.labels.index_select(0, rows)
        x, y = self.flat.index_select(0, rows), self.store.labels.index_select(0, rows)
        return into.copy_(x), y.to(self.device)

    def _stacked(self, draws: Sequence[Tensor]) -> Batch:
        clients = max(2, len(draws))    # a stack of one is computed as two
        rows = self.rows or max(len(index) for index in draws)
        sizes = np.array([len(index) for index in draws] + [0] * (clients - len(draws)))
        if sizes.max() > rows:
            raise ValueError(f"found a mini-batch of {sizes.max()} samples in a stack of {rows}")
        index = np.zeros((clients, rows), dtype=np.int64)
        for row, draw in zip(index, draws, strict=False):
            row[:len(draw)] = draw
        x, y = self._stack(index, sizes)
        entries = (sizes * self.loss.entries)[:, None]
        count = np.where(np.arange(rows) < sizes[:, None], entries, 0)
        weight = np.divide(1, count, where=count > 0, out=np.zeros(count.shape))
        counts, weights = (torch.from_numpy(v).to(self.device, self.dtype).unsqueeze(1) for v in (count, weight))
        minus = self.loss.encode(y, self.dtype, -1.0).view(-1, clients, rows).transpose(0, 1) * weights
        return Batch(False, len(draws), rows, x, x.mT, Target(minus.contiguous(), weights, counts))

    def _stack(self, index: np.ndarray, sizes: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return samples [clients, rows, inputs] in the buffer, and labels of clients * rows samples."""
        clients, rows = index.shape
        into = self._take("batch", index.size).view(clients, rows, self.inputs)
        ids = [self.clients[min(i, len(self.clients) - 1)] for i in range(clients)]
        if self.flat is not None:
            every = torch.from_numpy((index + self.store.offsets[ids][:, None]).reshape(-1))
            return into, self._gather(every, into.flatten(0, 1))[1]
        targets = []
        for m, row, size, place in zip(ids, index, sizes, into, strict=True):
            x, y = self.store.batch(m, row[:max(1, size)])
            place[:len(x)] = x.reshape(len(x), -1)
            place[len(x):] = place[0]
            targets += [y, y[:1].expand(rows - len(x), *y.shape[1:])]
        return into, torch.cat(targets).to(self.device)

    def _take(self, name: str, size: int) -> Tensor:
        """Return room for ``size`` samples in a buffer that only grows."""
        if name not in self.memory or self.memory[name].shape[0] < size:
            self.memory[name] = torch.empty(size, self.inputs, dtype=self.dtype, device=self.device)
        return self.memory[name].narrow(0, 0, size)


def _gathers(store: Any) -> bool:
    """Say whether samples can be gathered from one tensor without a copy of it."""
    return isinstance(store, ClientStore) and store.features.is_contiguous()
