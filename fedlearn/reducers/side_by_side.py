"""For servers that see every upload by itself: a sum that holds those of all clients, each at its own place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..contracts import Msg
from ..errors import ClientError


def add_side_by_side(into: Any, msg: Msg, clients: Sequence[int], cohort: Sequence[int], round: int) -> None:
    """Add the uploads [clients, numel] of these clients of a cohort to an exact or fast sum over the cohort.

    Raises:
        ClientError: as the sum does, naming the client.
    """
    place = {m: i for i, m in enumerate(sorted(cohort))}

    def add(rows: list[int]) -> None:
        at = [place[clients[i]] for i in rows]
        wide = {name: v.new_zeros(len(place), v.shape[-1]) for name, v in msg.items()}
        for name, v in msg.items():
            wide[name][at] = v[rows]
        one = {name: v.view(1, -1) for name, v in wide.items()}
        into.add_stack(one, dict.fromkeys(one, [1.0]), [clients[rows[0]]], round)

    try:
        add(list(range(len(clients))))
    except ClientError:     # whose is it?
        for i in range(len(clients)):
            add([i])
        raise


def rows_of(sums: Msg, count: int) -> dict[str, Tensor]:
    """Return the uploads [count, numel] that lie side by side in a sum, in the order of the clients' ids."""
    return {name: v.view(count, -1) for name, v in sums.items()}
