"""For servers that see every upload by itself: a sum that holds those of all clients, each at its own place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..contracts import Msg
from ..errors import ClientError


def add_side_by_side(into: Any, msg: Msg, clients: Sequence[int], cohort: Sequence[int], round: int,
                     peaks: Sequence[float] | None = None) -> None:
    """Add the uploads [clients, numel] of these clients of a cohort to an exact or fast sum over the cohort.

    ``peaks`` are their largest entries, where they are known to be finite.

    Raises:
        ClientError: as the sum does, naming the client.
    """
    place = places(cohort)

    def add(rows: list[int]) -> None:
        at = [place[clients[i]] for i in rows]
        wide = {name: v.new_zeros(len(place), v.shape[-1]) for name, v in msg.items()}
        for name, v in msg.items():
            wide[name][at] = v[rows]
        one = {name: v.view(1, -1) for name, v in wide.items()}
        peak = None if peaks is None else [max(peaks[i] for i in rows)]
        into.add_stack(one, dict.fromkeys(one, [1.0]), [clients[rows[0]]], round, peak)

    try:
        add(list(range(len(clients))))
    except ClientError:     # whose is it?
        for i in range(len(clients)):
            add([i])
        raise


def places(cohort: Sequence[int]) -> dict[int, int]:
    """Return by client of a cohort which row of the sum is its own: rows are in the order of the clients' ids."""
    return {m: i for i, m in enumerate(sorted(cohort))}


def rows_of(sums: Msg, cohort: Sequence[int], accepted: Sequence[int]) -> dict[str, Tensor]:
    """Return the uploads [accepted, numel] that lie side by side in a sum over a cohort, in the order of their ids.

    The places of clients that are not among ``accepted`` are left out.
    """
    rows = {name: v.view(len(cohort), -1) for name, v in sums.items()}
    if len(accepted) == len(cohort):
        return rows
    place = places(cohort)
    kept = [place[m] for m in sorted(accepted)]
    return {name: v[kept] for name, v in rows.items()}
