"""Step-size factors over a run."""

from __future__ import annotations

import pytest

from fedlearn.errors import ConfigError
from fedlearn.policies.schedule import Constant, Cosine, InverseTime, Schedule


def curve(schedule: Schedule, rounds: int) -> list[float]:
    return [schedule.factor(r, rounds) for r in range(rounds)]


def test_curves() -> None:
    assert curve(Constant(), 3) == [1, 1, 1]
    assert curve(InverseTime(half=2), 5) == pytest.approx([1, 2 / 3, 1 / 2, 2 / 5, 1 / 3])
    assert curve(Cosine(), 4) == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert curve(Cosine(final=0.5), 2) == pytest.approx([1, 0.75])
    assert Cosine().factor(9, 4) == Cosine().factor(3, 4)  # work that an asynchronous server asked for late


def test_warmup_comes_first_and_shifts_the_rest() -> None:
    assert curve(Constant(warmup=3), 5) == [0.25, 0.5, 0.75, 1, 1]
    for decay in (Cosine, InverseTime):
        assert curve(decay(warmup=2), 7)[2:] == curve(decay(), 5)


def test_inverse_time_within_a_round() -> None:
    schedule = InverseTime(half=1, local_steps=4)
    assert [schedule.factor(1, 9, k) for k in (0, 2, 4)] == pytest.approx([1 / 2, 1 / 2.5, 1 / 3])
    assert InverseTime(half=1).factor(1, 9, 3) == 0.5


def test_server_factor_only_where_asked_for() -> None:
    assert [InverseTime(half=1, server=on).server_factor(1, 9) for on in (False, True)] == [1, 0.5]


@pytest.mark.parametrize("schedule",
                         [Constant(), InverseTime(), Cosine(), Cosine(warmup=9), Constant(warmup=99)])
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_factors_are_positive_and_at_most_one(schedule: Schedule, rounds: int) -> None:
    assert all(0 < f <= 1 for f in curve(schedule, rounds))


@pytest.mark.parametrize(("kind", "wrong"), [
    (Constant, {"warmup": -1}), (InverseTime, {"half": 0}), (InverseTime, {"local_steps": 0}),
    (Cosine, {"final": 1.5}), (Cosine, {"final": -0.1}), (Cosine, {"warmup": -1}),
])
def test_wrong_schedules_name_their_key(kind: type[Schedule], wrong: dict) -> None:
    with pytest.raises(ConfigError) as e:
        kind(**wrong)
    assert e.value.key == f"schedule.{next(iter(wrong))}"
