"""The fast sum: floats added in the order in which they come.

It saves the conversion to integers and halves the bytes between workers; it gives up that the bits
of the result do not depend on placement and arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..contracts import Msg
from .layout import DTYPES, Layout, Weights, largest, stack_of


class FastSum:
    """A partial sum of weighted uploads in their own floating-point dtype, in place."""

    most: ClassVar[float] = torch.finfo(torch.float32).max    # that the clients' largest entries may add up to

    def __init__(self) -> None:
        self.layout: Layout | None = None
        self.buffer = torch.zeros(0)
        self.bound = 0.0

    def shape_as(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        """Allocate for a layout; the buffer has the widest dtype among the parts."""
        self.layout = layout
        wide = any(dtype == "float64" for _, _, dtype in layout.parts)
        self.buffer = torch.zeros(sum(n for _, n, _ in layout.parts), dtype=DTYPES["float64" if wide else "float32"],
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
            ClientError: if the layout differs from that of the uploads before it.
        """
        layout = Layout.of(msg, clients[0], round)
        if self.layout is None:
            self.shape_as(layout, next(iter(msg.values())).device)
        else:
            self.layout.same(layout, clients[0], round)
        if peaks is None:
            largest(msg, weights, clients, round)
        start = 0
        for name, numel, _ in layout.parts:
            for row, weight in zip(msg[name].unbind(), weights[name], strict=True):
                self.buffer[start:start + numel].add_(row, alpha=weight)
            start += numel

    def carry(self) -> None:
        """Floats have nothing to carry over."""

    def mean(self, denominators: Weights) -> dict[str, Tensor]:
        """Return sum / denominators[name] for every name, in the dtype of the uploads."""
        return self.mean_of_part(denominators, slice(None))

    def mean_of_part(self, denominators: Weights, part: slice) -> dict[str, Tensor]:
        """Return these entries of the mean of every name."""
        assert self.layout is not None
        out, start = {}, 0
        for name, numel, dtype in self.layout.parts:
            out[name] = (self.buffer[start:start + numel][part] / denominators[name]).to(DTYPES[dtype])
            start += numel
        return out
