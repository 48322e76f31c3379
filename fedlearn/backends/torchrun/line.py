"""Ranks in a line, each connected with its neighbours: what all shall have or add up crosses every link once.

A vector goes along in pieces, so that all links work at the same time. gloo's own broadcast is a tree, in which the
first rank sends the whole vector once for every doubling of the ranks, and its reduction ends in a gathering: with
three ranks on slow links they take up to twice and 4/3 times as long, with more of them longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .group import Group

LEAST, MOST = 1 << 16, 1 << 22    # bytes of a piece
RATE = 1e7      # bytes a second that a link carries, until that was measured
COST = 1.5e-3   # seconds that a piece costs beside its transfer: measured with three hosts on two cores
AHEAD = 4       # pieces that are on their way to a neighbour at most


class Line:
    """Some ranks in an order; each of them makes it at the same time as the others.

    ``several`` says whether they are on several hosts. Within one, operations cost more than waiting: pieces are large.

    Raises:
        Lost: if a neighbour does not come in time.
    """

    def __init__(self, group: Group, name: str, ranks: Sequence[int], several: bool = True) -> None:
        self.group, self.links, self.several = group, len(ranks) - 1, several
        place, pairs = ranks.index(group.rank), list(pairwise(ranks))
        self.up: Any = None      # with the neighbour that is nearer to the first rank
        self.down: Any = None    # with the other one
        # Every second pair meets before the others do: nobody waits for the whole line.
        for i in sorted({place - 1, place} & set(range(self.links)), key=lambda i: i % 2):
            pair = group.connect(f"{name} {i}", pairs[i])
            if i == place:
                self.down = pair
            else:
                self.up = pair

    def send(self, v: Tensor) -> None:
        """Send a vector from the first rank to all others, where it is overwritten."""
        pieces, on = self._pieces(v, v.element_size()), deque[Any]()
        comes = [self.group.begin(piece, self.up) for piece in pieces] if self.up is not None else []
        for i, piece in enumerate(pieces):
            if comes:
                self.group.done(comes[i])
            self._pass(piece, self.down, 0, on)
        self._end(on)

    def sum(self, v: Tensor, wire: torch.dtype) -> float:
        """Add all ranks' vectors up in the first one's; the others' are of no use afterwards.

        Every rank adds what comes to its own vector and passes that on as ``wire``. Return the bytes a second that came
        over each link, 0 if none did.
        """
        pieces, on, began = self._pieces(v, wire.itemsize), deque[Any](), perf_counter()
        spare = [torch.empty(pieces[0].numel(), dtype=wire) for _ in pieces[:2]] if self.down is not None else []
        comes = deque(self.group.begin(into[:piece.numel()], self.down, 1)
                      for into, piece in zip(spare, pieces, strict=False))
        for i, piece in enumerate(pieces):
            if comes:
                self.group.done(comes.popleft())
                piece.add_(spare[i % 2][:piece.numel()])
                if i + 2 < len(pieces):
                    comes.append(self.group.begin(spare[i % 2][:pieces[i + 2].numel()], self.down, 1))
            self._pass(piece.to(wire), self.up, 1, on)
        self._end(on)
        return v.numel() * wire.itemsize / (perf_counter() - began) if spare else 0.0

    def _pieces(self, v: Tensor, size: int) -> tuple[Tensor, ...]:
        """Cut a vector, whose entries cross in so many bytes, so that it takes least.

        Small pieces soon fill the line, but each has a cost of its own.
        """
        if not v.numel():
            return ()
        fills = self.links - 1 if self.several else 0
        best = sqrt(size * v.numel() * self.group.rate * COST / fills) if fills > 0 else MOST
        return v.split(int(min(max(best, LEAST), MOST)) // size)

    def _pass(self, piece: Tensor, to: Any, root: int, on: deque[Any]) -> None:
        if to is not None:
            on.append(self.group.begin(piece, to, root))
            if len(on) > AHEAD:
                self.group.done(on.popleft())

    def _end(self, on: deque[Any]) -> None:
        while on:
            self.group.done(on.popleft())
