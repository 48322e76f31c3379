"""Refused updates where the server reacts to each by itself, and choices that cannot honour a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from backends.unruly import poisoned
from problems import SIZES, begin, experiment, play

from fedlearn.algorithms.dsgd import DSGD
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.gradient_coding import GradientCoding
from fedlearn.errors import ConfigError, FedlearnError, NonFiniteUpdate
from fedlearn.policies.clock import Clock
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.participation import Participation
from fedlearn.policies.sampling import OneMachine, ProportionalSampling
from fedlearn.policies.weighting import SchemeOne, SchemeTwo
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.protocols.coded import Coded
from fedlearn.protocols.gossip import Gossip
from fedlearn.vectors import digest

N = len(SIZES)


def asynchronous(**choices: Any) -> Any:
    given = {"task": poisoned(3), "cohort": 3, "clock": Clock(spread=1.0), "protocol": Asynchronous(), "rounds": 12}
    return experiment(FedBuff(lr=0.2, buffer=2), **{**given, **choices})


def test_by_default_an_asynchronous_run_ends_with_the_error() -> None:
    with pytest.raises(NonFiniteUpdate, match=r"client 3, round \d+: .* at local step 1 of"):
        play(asynchronous())


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_a_bad_reply_is_left_out_and_its_place_is_free_again(policy: str) -> None:
    loop, _ = begin(asynchronous(on_bad_update=policy))
    reports = []
    for r in range(12):
        reports.append(loop.round(r))
        assert len(loop.busy) <= 3 and 3 not in loop.busy
    refused = [error.client for report in reports for error in report.refused]
    assert set(refused) == {3} and (len(refused) > 1 if policy == "refuse" else len(refused) == 1)
    assert all(len(report.records) == 2 for report in reports)
    assert loop.refused.counts == {3: len(refused)}
    assert sum(m == 3 for report in reports for m in report.cohort) == len(refused)
    # What was refused is sent to the client, and nothing comes back.
    each = reports[0].records[0].bytes_up
    assert all(report.bytes_down == each * len(report.cohort) for report in reports)


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_an_asynchronous_run_continues_from_its_snapshot(policy: str) -> None:
    e = asynchronous(on_bad_update=policy)
    whole, reports = play(e)
    loop, workers = begin(e)
    for r in range(7):
        loop.round(r)
    tensors, meta = loop.snapshot()
    later, _ = begin(e)
    later.restore({name: t.clone() for name, t in tensors.items()}, meta)
    assert later.refused.counts == loop.refused.counts != {}
    assert [later.round(r).cohort for r in range(7, 12)] == [report.cohort for report in reports[7:]]
    assert digest(later.model()) == digest(whole)


class Never(FedBuff):
    """Its clients all fail."""

    def local_step(self, *args: Any) -> Any:
        raise ValueError("never")


def test_where_nothing_is_ever_accepted_the_run_ends() -> None:
    with pytest.raises(FedlearnError, match="round 0: 101 updates were refused, and too few accepted"):
        play(experiment(Never(), 2, protocol=Asynchronous(), on_bad_update="refuse"))
    with pytest.raises(FedlearnError, match="round 0: all 6 clients were dropped"):
        play(experiment(Never(), 2, protocol=Asynchronous(), on_bad_update="drop", cohort=2))


def test_dropped_clients_leave_fewer_at_work_than_asked_for() -> None:
    loop, _ = begin(asynchronous(on_bad_update="drop", cohort=N))
    for r in range(6):
        report = loop.round(r)
        assert len(report.records) == 2 and N - 3 <= len(loop.busy) < N
        assert r or set(report.cohort) == set(range(N))


FULL = LocalWork(steps=1, batch_size=None)


class All(FedAvg):
    """Is only defined with full participation."""

    everybody = True


@pytest.mark.parametrize(("algorithm", "choices", "message"), [
    (FedAvg(), {"on_bad_update": "ignore"}, r"on_bad_update: found 'ignore'; allowed: one of drop, refuse, stop"),
    (FedAvg(), {"max_update_norm": 0}, r"max_update_norm: found 0; allowed: a number > 0"),
    (FedAvg(), {"participation": 2.0}, r"participation: found 2.0; allowed: an object of"),
    (DSGD(), {"protocol": Gossip(), "on_bad_update": "refuse"},
     r"on_bad_update: found 'refuse'; allowed: stop with protocol=gossip"),
    (DSGD(), {"protocol": Gossip(), "max_update_norm": 1.0},
     r"max_update_norm: found 1.0; allowed: null with protocol=gossip"),
    (DSGD(), {"protocol": Gossip(), "participation": Participation(least=2)},
     r"participation.least: found 2; allowed: 1 with protocol=gossip"),
    (GradientCoding(replication=2), {"protocol": Coded(), "local": FULL, "on_bad_update": "drop"},
     r"on_bad_update: found 'drop'; allowed: stop with protocol=coded"),
    (GradientCoding(replication=2), {"protocol": Coded(), "local": FULL, "participation": Participation(deadline=1.0)},
     r"participation.deadline: found 1.0; allowed: null with protocol=coded"),
    (FedBuff(), {"protocol": Asynchronous(), "participation": Participation(wall=3.0)},
     r"participation.wall: found 3.0; allowed: null with protocol=asynchronous"),
    (FedBuff(), {"protocol": Asynchronous(), "participation": Participation(over=1.5), "cohort": 2},
     r"participation.over: found 1.5; allowed: 1.0 with protocol=asynchronous"),
    (All(), {"on_bad_update": "refuse", "local": FULL},
     r"on_bad_update: found 'refuse'; allowed: stop with algorithm All"),
    (All(), {"participation": Participation(wall=1.0), "local": FULL},
     r"participation.wall: found 1.0; allowed: null with algorithm All"),
    (FedAvg(), {"participation": Participation(over=1.5)},
     r"participation.over: found 1.5; allowed: at most 1 with cohort=6 of 6 clients"),
    (FedAvg(), {"participation": Participation(over=1.5), "cohort": 2, "sampling": ProportionalSampling(),
                "weighting": SchemeOne()}, r"participation.over: found 1.5; allowed: 1.0 with sampling=proportional"),
    (FedAvg(), {"participation": Participation(over=1.5), "cohort": 2, "weighting": SchemeTwo()},
     r"participation.over: found 1.5; allowed: 1.0 with weighting=scheme2"),
    (FedAvg(), {"participation": Participation(deadline=1.0), "cohort": 1, "sampling": OneMachine()},
     r"participation.deadline: found 1.0; allowed: null with sampling=one"),
    (FedAvg(), {"participation": Participation(least=4), "cohort": 3},
     r"participation.least: found 4; allowed: at most 3, the clients of a cohort"),
])
def test_what_cannot_be_honoured_is_refused(algorithm: Any, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(algorithm, 2, **choices)


def test_a_coded_run_still_bounds_its_updates() -> None:
    e = experiment(GradientCoding(replication=2), 1, protocol=Coded(), local=FULL, max_update_norm=1e-9)
    with pytest.raises(FedlearnError, match="max_update_norm"):
        play(e)
