"""Who runs which clients: the longest work first, each to who will have finished it first."""

from __future__ import annotations

import heapq
from collections.abc import Container, Mapping, Sequence

from ..errors import DataError


def longest_first(costs: Mapping[int, float]) -> list[int]:
    """Return the clients by falling cost; equal ones by their id."""
    return sorted(costs, key=lambda client: (-costs[client], client))


def balance(costs: Mapping[int, float], speeds: Sequence[float],
            holds: Sequence[Container[int] | None] | None = None) -> list[list[int]]:
    """Return a list of clients for each worker, possibly empty.

    Longest processing time first: at most 4/3 of the best possible finish on workers of equal speed [Graham 1969],
    twice it on others [Gonzalez, Ibarra, Sahni 1977]. ``speeds`` are what a worker gets done in a second, in any unit;
    one of speed 0 gets nothing. ``holds`` says whose data each has (None: everybody's). The same arguments give the
    same lists.

    Raises:
        DataError: if nobody has the data of a client, naming it.
    """
    shares: list[list[int]] = [[] for _ in speeds]
    if holds is None and len(set(speeds)) == 1:     # the same choices, found sooner
        heap = [(0.0, worker) for worker in range(len(speeds))]
        for client in longest_first(costs):
            load, worker = heapq.heappop(heap)
            shares[worker].append(client)
            heapq.heappush(heap, (load + costs[client], worker))
        return shares
    loads = [0.0] * len(speeds)
    able = [i for i, speed in enumerate(speeds) if speed > 0]
    for client in longest_first(costs):
        among = able if holds is None else [i for i in able if (held := holds[i]) is None or client in held]
        if not among:
            raise DataError(f"client {client}: its data is on none of the {len(able)} workers here; allowed: clients "
                            "whose data some worker holds; start the run on all machines that hold data.")
        best = min(among, key=lambda i: (loads[i] + costs[client]) / speeds[i])
        loads[best] += costs[client]
        shares[best].append(client)
    return shares
