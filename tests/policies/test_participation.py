"""Over-selection, deadlines and least replies: by hand, as rules, and in rounds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from backends.unruly import poisoned
from hypothesis import given
from hypothesis import strategies as st
from problems import SIZES, begin, blobs, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.policies.clock import Clock
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.participation import Participation
from fedlearn.running.execute import checkpoint_of, execute
from fedlearn.tracking.run_folder import RunFolder
from fedlearn.vectors import digest, tree_flat

N = len(SIZES)
STEPS = LocalWork(steps=3, batch_size=5)
TOOK = {7: 3.0, 1: 1.0, 4: 2.0, 2: 2.0}


@pytest.mark.parametrize(("rule", "most", "spent", "taken", "late", "seconds"), [
    (Participation(), 4, 0.0, [7, 1, 4, 2], [], 3.0),
    (Participation(over=2.0), 2, 0.0, [1, 2], [7, 4], 2.0),          # among equals the smaller id
    (Participation(over=2.0), 3, 0.0, [1, 4, 2], [7], 2.0),
    (Participation(deadline=2.0), 4, 0.0, [1, 4, 2], [7], 2.0),      # in time is up to the deadline itself
    (Participation(deadline=2.5), 4, 0.0, [1, 4, 2], [7], 2.5),      # one was waited for in vain
    (Participation(deadline=2.5), 4, 1.0, [1], [7, 4, 2], 1.5),      # a prelude took a second
    (Participation(deadline=2.5), 4, 9.0, [], [7, 1, 4, 2], 0.0),
    (Participation(over=2.0, deadline=2.5), 2, 0.0, [1, 2], [7, 4], 2.0),    # enough came before it
    (Participation(deadline=9.0), 4, 0.0, [7, 1, 4, 2], [], 3.0),
])
def test_who_is_taken_by_hand(rule: Participation, most: int, spent: float, taken: list[int], late: list[int],
                              seconds: float) -> None:
    assert rule.take(TOOK, most, spent) == (taken, late, seconds)


@given(st.dictionaries(st.integers(0, 40), st.floats(0, 100), min_size=1), st.integers(1, 50),
       st.none() | st.floats(0.01, 100), st.floats(0, 50))
def test_who_is_taken_is_quicker_than_who_is_not(took: dict[int, float], most: int, deadline: float | None,
                                                 spent: float) -> None:
    rule = Participation(deadline=deadline)
    taken, late, seconds = rule.take(took, most, spent)
    left = math.inf if deadline is None else deadline - spent
    assert sorted(taken + late) == sorted(took) and len(taken) <= most
    assert all((took[a], a) < (took[b], b) for a in taken for b in late)
    assert all(took[m] <= min(left, seconds) for m in taken)
    assert len(taken) == min(most, sum(t <= left for t in took.values()))
    assert seconds <= max(left, 0)
    # Whoever else is asked, in whichever order: the same.
    assert set(rule.take(dict(reversed(took.items())), most, spent).taken) == set(taken)


@pytest.mark.parametrize(("over", "cohort", "asked"), [(1.0, 7, 7), (1.1, 10, 11), (1.3, 10, 13), (1.25, 10, 13),
                                                       (1.01, 10, 11), (1.0000001, 3, 4), (2.0, 3, 6)])
def test_how_many_are_asked(over: float, cohort: int, asked: int) -> None:
    assert Participation(over=over).asked(cohort) == asked


@pytest.mark.parametrize(("values", "message"), [
    ({"over": 0.9}, "participation.over: found 0.9; allowed: a number >= 1"),
    ({"over": math.inf}, "participation.over"), ({"over": math.nan}, "participation.over"),
    ({"deadline": 0}, "participation.deadline: found 0; allowed: a number > 0"),
    ({"deadline": math.inf}, "participation.deadline"), ({"wall": -1.0}, "participation.wall"),
    ({"least": 0}, "participation.least: found 0; allowed: a number >= 1"),
    ({"least": 1.5}, "participation.least: found 1.5; allowed: a whole number"),
])
def test_ranges(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Participation(**values)


# --- rounds -----------------------------------------------------------------------------------------------------------

SLOW = Clock(step_seconds=1.0, spread=1.0, latency=0.0, up_mbit=1e9, down_mbit=1e9)   # its factors: one per client


def factors(e: Any) -> dict[int, float]:
    return {m: e.clock.duration(m, 0, 1, 0, 0, e.seed) for m in range(N)}


def test_the_first_replies_of_more_clients_than_are_needed_are_taken() -> None:
    e = experiment(FedAvg(lr=0.2), 5, cohort=3, clock=SLOW, local=STEPS, participation=Participation(over=1.6))
    _, reports = play(e)
    speed = factors(e)
    now = 0.0
    for report in reports:
        assert len(report.cohort) == 5
        first = sorted(report.cohort, key=speed.__getitem__)[:3]
        assert [record.client for record in report.records] == sorted(first)
        assert sorted(report.late) == sorted(set(report.cohort) - set(first))
        each = report.records[0].bytes_up
        assert report.bytes_up == 3 * each and report.bytes_down == 5 * each
        now += 3 * max(speed[m] for m in first)
        assert report.simulated == pytest.approx(now, rel=1e-6)
    assert len({m for report in reports for m in report.cohort}) == N


def test_over_selection_changes_nothing_but_who_takes_part() -> None:
    """A round is that of the clients who were first, as if nobody else had been asked."""
    e = experiment(FedAvg(lr=0.2), 1, cohort=3, clock=SLOW, local=STEPS, participation=Participation(over=2.0))
    x, (report,) = play(e)
    chosen = [record.client for record in report.records]

    class These(type(e.sampling)):      # type: ignore[misc]
        def cohort(self, sizes: Any, size: Any, rng: Any, round: int) -> Any:
            ids, counts = super().cohort(sizes, size, rng, round)
            return ids * 0 + torch.tensor(chosen).numpy(), counts

    y, _ = play(replace(e, participation=Participation(), sampling=These()))
    assert torch.allclose(x, y, rtol=0, atol=1e-6)


def test_who_would_be_late_does_not_work() -> None:
    worked = set()

    class Notes(FedAvg):
        def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
            worked.add(oracle.batches.clients[0])
            return super().local_step(y, b, c, oracle, info)

    e = experiment(Notes(), 1, clock=SLOW, local=STEPS, stack=False)
    speed = factors(e)
    limit = 3 * sorted(speed.values())[2] * 1.001
    _, (report,) = play(replace(e, participation=Participation(deadline=limit)))
    assert worked == {record.client for record in report.records} == {m for m in range(N) if 3 * speed[m] <= limit}
    assert len(worked) == 3 and sorted(report.late) == sorted(set(range(N)) - worked)
    assert report.simulated == pytest.approx(limit)


def slow_rounds(least: int = 1) -> Any:
    """SCAFFOLD where in some rounds clients straggle past the deadline, and in some of them nearly all do."""
    clock = Clock(step_seconds=1.0, latency=0.0, straggler_probability=0.6, straggler_slowdown=100.0)
    return experiment(Scaffold(lr=0.2), 6, clock=clock, local=STEPS, stack=False, seed=2,
                      participation=Participation(deadline=10.0, least=least))


def test_a_late_clients_state_is_that_of_before_to_the_bit() -> None:
    """Against a run in which late clients were never asked: the same uploads, states and server."""
    e = slow_rounds()
    loop, workers = begin(e)
    other, others = begin(replace(e, participation=Participation()))

    for r in range(e.rounds):
        before = dict(loop.accepted_versions)
        report = loop.round(r)
        there = [record.client for record in report.records]
        if not there:
            continue
        weights = e.weighting.weights(*(torch.arange(N).numpy(), torch.ones(N).numpy(), e.task.sizes,
                                        int(e.task.sizes.sum()), N)).w
        phase = other._phase(r, other.algorithm, other.server, {m: float(weights[m]) for m in there}, e.plan(r))
        info = other._info(r, phase.records, e.plan(r), None)
        from fedlearn.protocols.synchronous import updated
        other.server = updated(other.server, phase.reduced, other.algorithm, None, {}, info)
        other.accepted_versions |= {m: r for m in there}
        assert digest(tree_flat(loop.server)) == digest(tree_flat(other.server)), r
        for m in report.late:
            assert loop.accepted_versions.get(m) == before.get(m)
    for m, version in loop.accepted_versions.items():
        assert digest(workers.worker.states.get(m, version)) == digest(others.worker.states.get(m, version))


def test_a_round_with_too_few_replies_changes_nothing() -> None:
    e = slow_rounds(least=3)
    loop, _ = begin(e)
    kinds, now = set(), 0.0
    for r in range(e.rounds):
        before, versions = digest(tree_flat(loop.server)), dict(loop.accepted_versions)
        report = loop.round(r)
        kinds.add(report.void)
        came = N - len(report.late)
        assert report.void == (came < 3)
        assert (digest(tree_flat(loop.server)) == before == report.digest) == report.void
        assert not report.void or (loop.accepted_versions == versions and not report.records)
        each = e.task.initial(0).numel() * 4 * 2
        assert report.bytes_up == came * each and report.bytes_down == N * each    # what came, came
        now += 10.0 if report.late else 3.0
        assert report.simulated == pytest.approx(now, abs=0.01)
    assert kinds == {True, False}


def test_void_rounds_in_a_run_its_records_and_a_resume(tmp_path: Any) -> None:
    e = replace(slow_rounds(least=3), checkpoint_every=1, checkpoint_keep=9)
    whole = execute(e, RunFolder(tmp_path / "whole"))
    void = [line for line in whole.metrics[1:] if not line["clients"]]
    assert void and len(void) < e.rounds
    assert all("train_loss" not in line and line["late"] > N - 3 for line in void)
    assert all("train_loss" in line for line in whole.metrics[1:] if line["clients"])
    events = [event for event in RunFolder(tmp_path / "whole").events() if event["event"] == "round void"]
    assert [event["round"] for event in events] == [line["round"] for line in void]
    # In two parts: stopped after a void round.
    folder = RunFolder(tmp_path / "parts")
    execute(replace(e, rounds=void[0]["round"]) if void[0]["round"] > 1 else replace(e, rounds=2), folder)
    assert execute(e, folder, start=checkpoint_of(e, folder)).sha256 == whole.sha256
    with pytest.raises(ConfigError, match="participation"):
        checkpoint_of(replace(e, participation=Participation(deadline=10.0)), folder)
    with pytest.raises(ConfigError, match="on_bad_update: found 'refuse'|on_bad_update: found refuse"):
        checkpoint_of(replace(e, on_bad_update="refuse"), folder)
    with pytest.raises(ConfigError, match="max_update_norm"):
        checkpoint_of(replace(e, max_update_norm=3.0), folder)


def test_a_run_of_void_rounds_only_ends_with_an_error(tmp_path: Any) -> None:
    e = experiment(FedAvg(), 3, clock=SLOW, participation=Participation(deadline=1e-6))
    for folder in (None, RunFolder(tmp_path)):
        with pytest.raises(FedlearnError, match="all 3 rounds were void.* 0 updates were refused and 18 replies"):
            execute(e, folder)
    with pytest.raises(FedlearnError, match="18 updates were refused and 0 replies late"):
        execute(experiment(FedAvg(), 3, on_bad_update="refuse", max_update_norm=1e-12))


def test_with_refused_updates_a_round_may_be_void_too() -> None:
    e = experiment(FedAvg(), 3, task=poisoned(3), on_bad_update="refuse", participation=Participation(least=N))
    x, reports = play(e)
    assert all(report.void and len(report.refused) == 1 for report in reports)
    assert digest(x) == digest(e.task.initial(0))


def test_a_prelude_is_waited_for_within_the_deadline_of_the_round() -> None:
    clock = Clock(step_seconds=1.0, spread=1.0, latency=0.0, up_mbit=1e9, down_mbit=1e9)
    e = experiment(Mime(), 2, clock=clock, local=STEPS, stack=False)
    speed = factors(e)
    # All are through with the prelude, of one step, by the time of the slowest; then three steps each.
    slowest = max(speed.values())
    limit = slowest + 3 * sorted(speed.values())[3] * 1.001
    _, (report, _) = play(replace(e, participation=Participation(deadline=limit)))
    assert {record.client for record in report.records} == set(sorted(speed, key=speed.__getitem__)[:4])
    assert report.simulated == pytest.approx(limit)
    # A deadline that only some of the preludes keep: those are asked for the round proper.
    limit = sorted(speed.values())[2] * 1.001
    loop, _ = begin(replace(e, participation=Participation(deadline=limit)))
    before = digest(tree_flat(loop.server))
    report = loop.round(0)
    assert report.void and sorted(report.late) == list(range(N)) and report.digest == before
    each = 4 * e.task.initial(0).numel()
    assert report.bytes_up == 3 * each and report.simulated == pytest.approx(limit)


def test_void_after_the_prelude_the_server_is_as_before_it() -> None:
    e = experiment(Mime(), 1, clock=SLOW, local=STEPS, stack=False)
    speed = factors(e)
    late = replace(e, participation=Participation(deadline=max(speed.values()) * 1.001))
    loop, _ = begin(late)
    before = digest(tree_flat(loop.server))
    report = loop.round(0)
    assert report.void and report.digest == before == digest(tree_flat(loop.server))


@dataclass(frozen=True)
class Dawdles(Scaffold):
    """Takes its time over clients with many local steps."""

    def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
        if info.k >= 3:
            time.sleep(0.7)
        return super().local_step(y, b, c, oracle, info)


@pytest.mark.parametrize("stack", [False, True])
def test_real_seconds_leave_out_who_is_not_done(stack: bool, caplog: pytest.LogCaptureFixture) -> None:
    local = LocalWork(epochs=1, batch_size=6)      # 2 4 2 7 1 3 steps
    e = experiment(Dawdles(lr=0.1), 1, local=local, stack=stack, participation=Participation(wall=0.6))
    loop, workers = begin(e)
    assert caplog.text.count("hash is not the same elsewhere") == 1
    report = loop.round(0)
    there = [record.client for record in report.records]
    assert set(there) <= {0, 1, 2, 4, 5} and there and 3 in report.late and not report.refused
    assert sorted(there + list(report.late)) == list(range(N))
    assert set(workers.worker.states.held) == set(there) == set(loop.accepted_versions)
    # What is in the sum is what those alone give.
    alone = experiment(Dawdles(lr=0.1), 1, local=local, stack=stack)
    other, _ = begin(alone)
    weights = {m: SIZES[m] / (sum(SIZES) / N) for m in there}
    phase = other._phase(0, other.algorithm, other.server, weights, alone.plan(0))
    total = phase.reduced.sum.mean({name: 1.0 for name, _, _ in phase.reduced.sum.layout.parts})
    assert torch.isfinite(total["dx"]).all()
    info = other._info(0, phase.records, alone.plan(0), None)
    from fedlearn.protocols.synchronous import updated
    expected = updated(other.server, phase.reduced, other.algorithm, None, {}, info)
    assert digest(tree_flat(expected)) == digest(tree_flat(loop.server))


@pytest.mark.parametrize("keys", [{"over": 1.5}, {"deadline": 5.0}, {"least": 2}, {"wall": 9.0}])
def test_the_keys_are_part_of_what_a_run_is(keys: dict[str, Any]) -> None:
    plain = experiment(FedAvg(), cohort=3)
    assert experiment(FedAvg(), cohort=3, participation=Participation(**keys)).identity() != plain.identity()
    assert experiment(FedAvg(), cohort=3, participation=Participation()).identity() == plain.identity()


def test_a_policy_that_leaves_nobody_out_gives_the_same_bits() -> None:
    plain, _ = play(experiment(Scaffold(), 3, task=blobs()))
    for choices in ({"on_bad_update": "refuse"}, {"on_bad_update": "drop", "max_update_norm": 1e6},
                    {"participation": Participation(deadline=1e9)}, {"participation": Participation(wall=1e6)}):
        assert digest(play(experiment(Scaffold(), 3, task=blobs(), **choices))[0]) == digest(plain)
