"""Whose data a worker has, as it tells the coordinator: runs of client numbers, from the first up to the last."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Sequence

import numpy as np

from ..contracts import Task


def runs(task: Task) -> list[list[int]] | None:
    """Return the clients whose data a task has here, as [first, last] of each run without a gap; None: all of them."""
    holds = getattr(task, "holds", None)
    if holds is None:
        return None
    parts = np.split(holds, np.flatnonzero(np.diff(holds) > 1) + 1)
    return [[int(part[0]), int(part[-1])] for part in parts if len(part)]


class Runs(Container[int]):
    """The clients in some runs."""

    def __init__(self, runs: Sequence[Sequence[int]]) -> None:
        self.firsts, self.lasts = [first for first, _ in runs], [last for _, last in runs]

    def __contains__(self, client: object) -> bool:
        """Say whether a client is in one of them."""
        assert isinstance(client, int)
        i = bisect_right(self.firsts, client) - 1
        return i >= 0 and client <= self.lasts[i]
