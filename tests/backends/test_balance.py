"""Balancing: every client once, longest first, the same lists every time."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.backends.balance import balance, longest_first


@pytest.mark.parametrize("workers", [1, 2, 5, 40])
def test_every_client_once_and_no_worker_far_behind(workers: int) -> None:
    rng = np.random.default_rng(workers)
    costs = {int(m): int(c) for m, c in enumerate(rng.integers(1, 1000, 30))}
    shares = balance(costs, workers)
    assert len(shares) == workers
    assert sorted(m for share in shares for m in share) == sorted(costs)
    loads = [sum(costs[m] for m in share) for share in shares]
    best = max(sum(costs.values()) / workers, max(costs.values()))
    assert max(loads) <= 4 / 3 * best + 1


def test_by_hand() -> None:
    assert balance({0: 3, 1: 3, 2: 2, 3: 2, 4: 2}, 2) == [[0, 2, 4], [1, 3]]


def test_fewer_clients_than_workers() -> None:
    assert balance({7: 1}, 3) == [[7], [], []]
    assert balance({}, 2) == [[], []]


def test_ties_do_not_depend_on_the_order_of_the_question() -> None:
    assert balance({2: 1, 1: 1, 0: 1}, 2) == balance({0: 1, 1: 1, 2: 1}, 2)
    assert longest_first({2: 1, 0: 5, 1: 5}) == [0, 1, 2]
