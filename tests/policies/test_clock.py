"""Simulated seconds."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from fedlearn.errors import ConfigError
from fedlearn.policies.clock import Clock


def test_computing_and_two_messages() -> None:
    clock = Clock(step_seconds=0.5, latency=0.25, up_mbit=8, down_mbit=16)
    # 4 steps of 0.5 s; 2 MB down at 2 MB/s; 3 MB up at 1 MB/s; latency twice.
    assert clock.duration(0, 0, 4, 2_000_000, 3_000_000, seed=1) == pytest.approx(2 + 1 + 3 + 0.5)


def test_a_client_keeps_its_speed_over_the_rounds() -> None:
    clock = Clock(step_seconds=1, spread=0.5, latency=0)
    took = np.array([[clock.duration(m, r, 1, 0, 0, 7) for r in range(2)] for m in range(500)])
    assert (took[:, 0] == took[:, 1]).all()
    logs = np.log(took[:, 0])
    # Five standard errors: 0.5 / sqrt(500) of the mean, 0.5 / sqrt(1000) of the deviation.
    assert abs(logs.mean()) < 0.112 and abs(logs.std() - 0.5) < 0.08
    assert clock.duration(3, 0, 1, 0, 0, 8) != took[3, 0]


def test_stragglers_are_others_each_round() -> None:
    clock = Clock(step_seconds=1, latency=0, straggler_probability=0.2, straggler_slowdown=6)
    took = np.array([[clock.duration(m, r, 2, 0, 0, 7) for r in range(10)] for m in range(100)])
    assert set(took.ravel()) == {2.0, 12.0}
    slow = took == 12
    # 200 of 1000 expected, standard deviation 12.6; five of them.
    assert abs(slow.sum() - 200) < 63 and (slow.any(1) & ~slow.all(1)).sum() > 50


@pytest.mark.parametrize("name", [f.name for f in fields(Clock)])
def test_out_of_range_names_its_key(name: str) -> None:
    for value in (-1, float("nan")):
        with pytest.raises(ConfigError) as e:
            replace(Clock(), **{name: value})
        assert e.value.key == f"clock.{name}"
