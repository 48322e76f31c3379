"""Speeds from shares: what is plain is adopted, noise is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedlearn.backends.balance import balance
from fedlearn.backends.torchrun.pace import IDLE, Pace


def rounds_of(pace: Pace, true: Any, rounds: int, noise: float, clients: int, seed: int = 0) -> list[list[int]]:
    """Let ranks of true speeds work on clients of unequal cost; return the last shares."""
    rng, seats = np.random.default_rng(seed), list(range(len(pace.speeds)))
    shares: list[list[int]] = []
    for r in range(rounds):
        costs = {m: int(c) for m, c in enumerate(rng.integers(20, 200, clients))}
        shares = balance(costs, pace.of(seats))
        done = [sum(costs[m] for m in share) for share in shares]
        speeds = true(r) if callable(true) else true
        seconds = np.array(done) / np.array(speeds) / 1000 * np.exp(rng.normal(0, noise, len(seats)))
        pace.learn({seat: (done[seat], float(seconds[seat])) for seat in seats})
    return shares


def test_a_rank_that_is_twice_as_slow_gets_a_third_of_two_ranks_work() -> None:
    pace = Pace("auto", 2, False)
    shares = rounds_of(pace, [1.0, 0.5], 20, 0.15, clients=60)
    assert pace.speeds == [1.0, 0.5] and len(shares[1]) / 60 == pytest.approx(1 / 3, abs=0.08)


def test_ranks_of_one_kind_stay_exactly_equal_beside_others() -> None:
    pace = Pace("auto", 5, False)
    rounds_of(pace, [1.0, 0.1, 1.0, 0.1, 1.0], 60, 0.1, clients=60)
    assert pace.speeds[0] == pace.speeds[2] == pace.speeds[4] == 1
    assert pace.speeds[1] == pace.speeds[3] == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("ranks", [2, 8])
def test_noise_adopts_nothing(ranks: int) -> None:
    for seed in range(5):
        pace = Pace("auto", ranks, False)
        rounds_of(pace, [1.0] * ranks, 300, 0.15, clients=3 * ranks, seed=seed)
        assert pace.speeds == [1.0] * ranks


def test_a_rank_that_was_slow_for_a_while_and_got_no_client_gets_some_again() -> None:
    pace = Pace("auto", 2, False)
    assert rounds_of(pace, [1.0, 0.02], 10, 0.0, clients=6)[1] == []
    rounds_of(pace, [1.0, 0.02], 10 * IDLE, 0.05, clients=6)
    assert pace.speeds[1] < 0.2
    rounds_of(pace, [1.0, 1.0], 5 * IDLE, 0.05, clients=6)
    assert pace.speeds == [1.0, 1.0]


def test_what_tells_nothing_of_speed() -> None:
    for spent in ({0: (100.0, 0.01), 1: (100.0, 0.001)}, {0: (100.0, 0.0), 1: (100.0, 3.0)},
                  {0: (9.0, 9.0), 1: (0.0, 1.0)}):
        pace = Pace("auto", 2, False)
        assert not any(pace.learn(spent) for _ in range(20))   # too short, a first share, an idle rank
    hiccups = Pace("auto", 2, False)
    assert not any(hiccups.learn({0: (9.0, 0.001), 1: (9.0, 0.001 if r % 3 else 1.0)}) for r in range(1, 40))
    fixed, aside = Pace([1, 4], 2, False), Pace("auto", 3, True)
    assert not any(fixed.learn({0: (9.0, 1.0), 1: (1.0, 9.0)}) for _ in range(20)) and fixed.speeds == [1.0, 4.0]
    rounds_of(aside, [1.0, 1.0, 0.25], 10, 0.0, clients=12)
    assert aside.speeds == [0.0, 1.0, 0.25]
