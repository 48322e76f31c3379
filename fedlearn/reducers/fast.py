"""The fast sum: floats added in the order in which they come.

It saves the conversion to integers and halves the bytes between workers; it gives up that the bits
of the result do not depend on placement and arrival.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..contracts import Msg
from .layout import DTYPES, Layout, Weights, largest


class FastSum:
    """A partial sum of weighted uploads in their own floating-point dtype, in place."""

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
        """Add weights[name] * msg[name] for every name.

        Raises:
            NonFiniteUpdate: if an entry is NaN or infinite.
            ClientError: if the layout differs from that of the uploads before it.
        """
        layout = Layout.of(msg, client, round)
        if self.layout is None:
            self.shape_as(layout, next(iter(msg.values())).device)
        else:
            self.layout.same(layout, client, round)
        largest(msg, weights, client, round)
        start = 0
        for name, numel, _ in layout.parts:
            self.buffer[start:start + numel].add_(msg[name], alpha=weights[name])
            start += numel

    def carry(self) -> None:
        """Floats have nothing to carry over."""

    def mean(self, denominators: Weights) -> dict[str, Tensor]:
        """Return sum / denominators[name] for every name, in the dtype of the uploads."""
        assert self.layout is not None
        out, start = {}, 0
        for name, numel, dtype in self.layout.parts:
            out[name] = (self.buffer[start:start + numel] / denominators[name]).to(DTYPES[dtype])
            start += numel
        return out
