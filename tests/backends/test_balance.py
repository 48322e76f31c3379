"""Balancing: every client once, longest first, the same lists every time."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.backends.balance import balance, longest_first
from fedlearn.backends.holders import Runs, runs
from fedlearn.errors import DataError


@pytest.mark.parametrize("workers", [1, 2, 5, 40])
def test_every_client_once_and_no_worker_far_behind(workers: int) -> None:
    rng = np.random.default_rng(workers)
    costs = {int(m): int(c) for m, c in enumerate(rng.integers(1, 1000, 30))}
    shares = balance(costs, [1.0] * workers)
    assert len(shares) == workers
    assert sorted(m for share in shares for m in share) == sorted(costs)
    loads = [sum(costs[m] for m in share) for share in shares]
    best = max(sum(costs.values()) / workers, max(costs.values()))
    assert max(loads) <= 4 / 3 * best + 1


def test_by_hand() -> None:
    assert balance({0: 3, 1: 3, 2: 2, 3: 2, 4: 2}, [1, 1]) == [[0, 2, 4], [1, 3]]


def test_fewer_clients_than_workers() -> None:
    assert balance({7: 1}, [1, 1, 1]) == [[7], [], []]
    assert balance({}, [1, 1]) == [[], []]


def test_ties_do_not_depend_on_the_order_of_the_question() -> None:
    assert balance({2: 1, 1: 1, 0: 1}, [1, 1]) == balance({0: 1, 1: 1, 2: 1}, [1, 1])
    assert longest_first({2: 1, 0: 5, 1: 5}) == [0, 1, 2]


def test_shares_in_proportion_to_speed_by_hand() -> None:
    assert balance({m: 2 for m in range(6)}, [2, 1]) == [[0, 1, 3, 4], [2, 5]]
    assert balance({0: 5, 1: 1}, [0, 1]) == [[], [0, 1]]


@pytest.mark.parametrize("speeds", [[1.0, 1.0, 1.0], [0.0, 2.0, 1.0, 5.0]])
def test_whoever_has_everything_changes_nothing(speeds: list[float]) -> None:
    costs = {int(m): int(c) for m, c in enumerate(np.random.default_rng(0).integers(1, 1000, 40))}
    everything = [None if i % 2 else range(40) for i in range(len(speeds))]
    shares = balance(costs, speeds, everything)
    assert shares == balance(costs, speeds)
    assert sorted(m for share in shares for m in share) == sorted(costs)
    assert all(share for share, speed in zip(shares, speeds, strict=True) if speed)


def test_clients_go_to_who_holds_them() -> None:
    costs = {0: 9, 1: 1, 2: 1, 3: 1}
    assert balance(costs, [1, 1, 1], [[], [0, 1], [1, 2, 3]]) == [[], [0], [1, 2, 3]]
    with pytest.raises(DataError, match="client 2: its data is on none of the 2 workers here"):
        balance(costs, [0, 1, 1], [None, [0, 1], [3]])


@given(st.sets(st.integers(0, 60)))
def test_runs_of_clients(held: set[int]) -> None:
    there = SimpleNamespace(holds=np.array(sorted(held), dtype=np.int64))
    found = runs(there)
    assert all(first <= last for first, last in found)
    assert all(b[0] > a[1] + 1 for a, b in pairwise(found))
    assert {m for m in range(-1, 62) if m in Runs(found)} == held


def test_a_task_that_says_nothing_holds_everybody() -> None:
    assert runs(SimpleNamespace()) is None
