"""A trial of an oracle's stacks: do a client's bits depend on who else is in the stack, on this machine?

The kernels of batched products promise nothing about their last bits, so this is tried out with the task's own
layers and samples before stacks are used unasked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..contracts import ClientOracle, Vec

TRIED = 16  # clients of the largest stack


def steady(oracle: ClientOracle, sizes: np.ndarray, x: Vec, batch: int) -> bool:
    """Return whether gradients at ``x`` [P] have the same bits in stacks of any size and order.

    ``sizes`` are the samples of the first clients, of which mini-batches of up to ``batch`` are stacked.
    """
    many = min(len(sizes), TRIED, oracle.room(batch))
    draws = [torch.arange(min(batch, int(n)) if m else 1) for m, n in enumerate(sizes[:many])]
    points = x + 0.01 * torch.arange(many, dtype=x.dtype, device=x.device).sin().unsqueeze(1)

    def gradients(ids: Sequence[int]) -> torch.Tensor:
        oracle.enter(ids)
        oracle.at([draws[m] for m in ids])
        return oracle.grad(points[list(ids)]).clone()

    whole = gradients(range(many))
    others = [[m] for m in range(many)] + [list(range(many))[::-1]] + [list(range(k, many)) for k in range(1, many)]
    return all(torch.equal(gradients(ids), whole[ids]) for ids in others)
