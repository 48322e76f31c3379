"""Step-size factors over a run."""

from __future__ import annotations

import pytest

from fedlearn.errors import ConfigError
from fedlearn.policies.schedule import Constant, Cosine, InverseSteps, InverseTime, Linear, Power, Schedule


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


def test_linear_ends_one_round_or_step_after_the_last() -> None:
    assert curve(Linear(), 4) == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])
    assert curve(Linear(warmup=2), 6)[2:] == curve(Linear(), 4)
    assert Linear().factor(1, 4, 7) == 3 / 4 and Linear().factor(9, 4) == 1 / 4
    within = Linear(local_steps=3)
    steps = [within.factor(r, 2, k) for r in (0, 1) for k in range(3)]
    assert steps == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert within.factor(1, 2, 99) == pytest.approx(1 / 6)  # where a round has more steps than it was told


def test_power_by_rounds_or_by_local_steps() -> None:
    assert curve(Power(alpha=0.5), 4) == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5])
    assert Power(alpha=0.5).factor(3, 9, k=2, t=99) == 0.5
    assert Power(alpha=0.5, by_step=True).factor(3, 9, k=2, t=99) == pytest.approx(0.1)
    assert curve(Power(warmup=2), 7)[2:] == curve(Power(), 5)


def test_inverse_steps_are_capped_at_one() -> None:
    # lr = 1 / H = 1/2 and mu = 1: lr times the factor is min(2 / (t + 1), 1/2).
    schedule = InverseSteps(a=4, b=1)
    found = [0.5 * schedule.factor(r, 9, k, t=2 * r + k) for r in range(4) for k in range(2)]
    assert found == pytest.approx([min(2 / (t + 1), 0.5) for t in range(8)])


def test_server_factor_only_where_asked_for() -> None:
    assert [InverseTime(half=1, server=on).server_factor(1, 9) for on in (False, True)] == [1, 0.5]
    assert [Power(alpha=1, by_step=True, server=on).server_factor(1, 9, t=3) for on in (False, True)] == [1, 0.25]


def test_who_counts_local_steps_says_so() -> None:
    assert InverseSteps().by_step and Power(by_step=True).by_step
    assert not any(getattr(s, "by_step", False) for s in (Power(), Linear(local_steps=3), InverseTime(), Constant()))
    assert Power(by_step=True) != Power()


@pytest.mark.parametrize("schedule",
                         [Constant(), InverseTime(), Cosine(), Cosine(warmup=9), Constant(warmup=99), Linear(),
                                      Linear(warmup=9), Linear(local_steps=5), Power(), Power(alpha=1, by_step=True),
                                      InverseSteps(a=0.1)])
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_factors_are_positive_and_at_most_one(schedule: Schedule, rounds: int) -> None:
    assert all(0 < f <= 1 for f in curve(schedule, rounds))


@pytest.mark.parametrize(("kind", "wrong"), [
    (Constant, {"warmup": -1}), (InverseTime, {"half": 0}), (InverseTime, {"local_steps": 0}),
    (Cosine, {"final": 1.5}), (Cosine, {"final": -0.1}), (Cosine, {"warmup": -1}),
    (Linear, {"local_steps": 0}), (Power, {"alpha": 0}), (Power, {"alpha": 1.1}), (InverseSteps, {"a": 0}),
    (InverseSteps, {"b": 0}), (InverseSteps, {"warmup": 1}), (Power, {"warmup": 1, "by_step": True}),
])
def test_wrong_schedules_name_their_key(kind: type[Schedule], wrong: dict) -> None:
    with pytest.raises(ConfigError) as e:
        kind(**wrong)
    assert e.value.key == f"schedule.{next(iter(wrong))}"
