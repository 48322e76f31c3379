"""Who runs which clients: the longest work first, each to the worker with the least so far."""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def longest_first(costs: Mapping[int, float]) -> list[int]:
    """Return the clients by falling cost; equal ones by their id."""
    return sorted(costs, key=lambda client: (-costs[client], client))


def balance(costs: Mapping[int, float], workers: int) -> list[list[int]]:
    """Return a list of clients for each worker, possibly empty.

    Longest processing time first: at most 4/3 of the best possible finish [Graham 1969]. The same
    costs give the same lists.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [(0.0, worker) for worker in range(workers)]
    for client in longest_first(costs):
        load, worker = heapq.heappop(loads)
        shares[worker].append(client)
        heapq.heappush(loads, (load + costs[client], worker))
    return shares
