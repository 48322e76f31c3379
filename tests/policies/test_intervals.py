"""Communication intervals: how many local steps lie between two rounds."""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import blobs, experiment, play
from torch import Tensor

import fedlearn
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.config.compose import compose, recompose
from fedlearn.errors import ConfigError
from fedlearn.policies.intervals import ConstantIntervals, GivenIntervals, GrowingIntervals, Intervals, PostLocal
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.schedule import InverseSteps
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.running.perform import perform


def steps(intervals: Intervals, rounds: int, each: int) -> list[int]:
    intervals.check(rounds, each)
    return [intervals.steps(r, rounds, each) for r in range(rounds)]


@pytest.mark.parametrize("rounds", [1, 2, 3, 7, 20, 99])
@pytest.mark.parametrize("more", [0, 1, 13, 50])
def test_growing_intervals_end_on_the_budget(rounds: int, more: int) -> None:
    each = -(-(rounds + 1) // 2) + more
    total = rounds * each
    grown = steps(GrowingIntervals(), rounds, each)
    # t_r = floor(a r (r + 1) / 2), a = 2 T / (R (R + 1)), in exact integers.
    places = [total * r * (r + 1) // (rounds * (rounds + 1)) for r in range(1, rounds + 1)]
    assert [sum(grown[:r]) for r in range(1, rounds + 1)] == places and places[-1] == total
    assert min(grown) >= 1 and all(b >= a - 1 for a, b in zip(grown, grown[1:], strict=False))


def test_growing_intervals_as_published() -> None:
    a = 2 * 1000 / (20 * 21)
    grown = steps(GrowingIntervals(), 20, 50)
    assert [sum(grown[:r]) for r in range(1, 20)] == [floor(a * r * (r + 1) / 2) for r in range(1, 20)]
    assert grown[0] == 4 and grown[-1] == 96 and sum(grown) == 1000


@pytest.mark.parametrize("each", [1, 5, 10])
def test_growing_intervals_refuse_what_would_be_empty(each: int) -> None:
    assert steps(GrowingIntervals(), 2 * each - 1, each)[0] == 1
    with pytest.raises(ConfigError) as e:
        GrowingIntervals().check(2 * each, each)
    assert e.value.key == "intervals" and f"local.steps to {each + 1}" in str(e.value)
    assert steps(GrowingIntervals(), 2 * each, each + 1)[0] >= 1


def test_the_other_rules() -> None:
    assert steps(ConstantIntervals(), 3, 7) == [7, 7, 7]
    assert steps(PostLocal(switch=2), 4, 7) == [1, 1, 7, 7]
    assert steps(GivenIntervals(each=(3, 1, 2)), 3, 2) == [3, 1, 2]


@pytest.mark.parametrize(("intervals", "choices", "key"), [
    (GivenIntervals(each=(3, 1, 3)), {"rounds": 3, "local": LocalWork(steps=2)}, "intervals.each"),
    (GivenIntervals(each=(1, 1)), {"rounds": 3, "local": LocalWork(steps=2)}, "intervals.each"),
    (GrowingIntervals(), {"rounds": 4, "local": LocalWork(steps=2)}, "intervals"),
    (GrowingIntervals(), {"rounds": 4}, "local.steps"),
    (PostLocal(), {"rounds": 4, "local": LocalWork(epochs=1)}, "local.steps"),
    (PostLocal(), {"algorithm": FedBuff(), "protocol": Asynchronous(), "local": LocalWork(steps=2)}, "intervals"),
])
def test_what_does_not_fit_is_refused(intervals: Intervals, choices: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as e:
        experiment(**{"algorithm": FedAvg(), **choices, "intervals": intervals})
    assert e.value.key == key


@pytest.mark.parametrize(("make", "key"), [(lambda: PostLocal(switch=-1), "intervals.switch"),
                                           (lambda: GivenIntervals(each=(2, 0)), "intervals.each")])
def test_wrong_fields_name_their_key(make: Any, key: str) -> None:
    with pytest.raises(ConfigError) as e:
        make()
    assert e.value.key == key


# In runs.

def final(algorithm: Any = None, intervals: Intervals | None = None, each: int = 4, **choices: Any) -> Tensor:
    choices = {"task": blobs(dtype=torch.float64), "rounds": 5, "cohort": 4, "intervals": intervals or
               ConstantIntervals(), "local": LocalWork(steps=each, batch_size=5), **choices}
    return play(experiment(algorithm or FedAvg(lr=0.2), **choices))[0]


def test_clients_take_the_steps_of_the_rule_and_count_them() -> None:
    seen = []

    class Counting(FedAvg):
        def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
            seen.append((info.round, info.k, info.steps, info.t))
            return super().local_step(y, b, c, oracle, info)

    _, reports = play(experiment(Counting(lr=0.1), 4, intervals=GrowingIntervals(), local=LocalWork(steps=5), cohort=1))
    assert [report.records[0].steps for report in reports] == [2, 4, 6, 8]
    assert seen == [(r, k, 2 * r + 2, r * (r + 1) + k) for r in range(4) for k in range(2 * r + 2)]


def test_post_local_sgd_is_minibatch_sgd_at_first_and_local_sgd_then() -> None:
    """The switch at the end and at the start; in between it is neither."""
    never, at_once = final(intervals=PostLocal(switch=5)), final(intervals=PostLocal(switch=0))
    assert torch.equal(never, final(each=1)) and torch.equal(at_once, final())
    torch.testing.assert_close(never, final(MinibatchSGD(lr=0.2), each=1), rtol=1e-13, atol=1e-14)
    between = final(intervals=PostLocal(switch=2))
    assert min((between - never).norm(), (between - at_once).norm()) > 1e-2
    assert torch.equal(between, final(intervals=GivenIntervals(each=(1, 1, 4, 4, 4))))


def test_one_round_is_one_shot_averaging_whatever_the_rule() -> None:
    alone = final(rounds=1, each=9)
    for intervals in (GrowingIntervals(), PostLocal(switch=0), GivenIntervals(each=(9,))):
        assert torch.equal(final(intervals=intervals, rounds=1, each=9), alone)


def test_the_model_depends_on_the_schedule_by_local_steps_over_growing_rounds() -> None:
    """The step size at local step t is that of t, wherever the rounds end: on one client it does not matter where."""
    one: dict[str, Any] = {"task": blobs((40,), dtype=torch.float64), "cohort": 1, "schedule": InverseSteps(a=3)}
    full = {"local": LocalWork(steps=6, batch_size=None), "rounds": 5, **one}
    torch.testing.assert_close(final(intervals=GrowingIntervals(), **full), final(**full), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.2), Scaffold(lr=0.2)], ids=lambda a: type(a).__name__)
def test_alone_and_stacked_alike(algorithm: Any) -> None:
    alone, stacked = (final(algorithm, GrowingIntervals(), stack=stack, oracle="vmap" if stack else "auto")
                      for stack in (False, True))
    assert (alone - stacked).norm() <= 1e-12 * alone.norm()


SMALL = ["task=digits", "model=softmax", "clients=6", "cohort=3", "rounds=4", "local.steps=5", "evaluate.every=0",
         "progress=none"]


def test_a_run_resumed_across_the_switch_ends_in_the_same_hash(tmp_path: Path) -> None:
    """From round 2 on the clients take five steps; the first part of the run did not get there."""
    overrides = [*SMALL, "algorithm=scaffold", "intervals=post_local", "intervals.switch=2", f"runs={tmp_path}"]
    _, whole = perform(compose([*overrides, "name=whole"]))
    folder, _ = perform(compose([*overrides, "name=half", "rounds=2"]))
    _, resumed = perform(recompose(folder.config_text(), ["rounds=4"]), folder=folder)
    assert resumed.sha256 == whole.sha256
    _, local = perform(compose([*SMALL, "algorithm=scaffold", "name=local", f"runs={tmp_path}"]))
    assert local.sha256 != whole.sha256


def test_growing_intervals_are_not_continued_with_other_rounds(tmp_path: Path) -> None:
    overrides = [*SMALL, "intervals=growing", f"runs={tmp_path}", "rounds=2"]
    folder, _ = perform(compose(overrides))
    with pytest.raises(ConfigError, match="rounds"):
        perform(recompose(folder.config_text(), ["rounds=4"]), folder=folder)


def test_lists_are_composed(tmp_path: Path) -> None:
    _, history = perform(compose([*SMALL, "intervals=given", "intervals.each=[1,5,5,9]", f"runs={tmp_path}"]))
    assert len(history.metrics) >= 4
    with pytest.raises(ConfigError, match=r"intervals\.each"):
        perform(compose([*SMALL, "intervals=given", f"runs={tmp_path}", "name=other"]))


def test_the_python_face_takes_them() -> None:
    choices: dict[str, Any] = {"algorithm": FedAvg(), "task": blobs(), "progress": "none", "local": LocalWork(steps=3)}
    ends = {fedlearn.run(**choices, rounds=4, intervals=i).sha256 for i in (None, ConstantIntervals(), PostLocal(2))}
    assert len(ends) == 2
