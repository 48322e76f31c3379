"""Who talks when: each protocol against the one that it becomes in a limit, and across a restart."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from problems import SIZES, begin, blobs, experiment, play

from fedlearn.algorithms.dsgd import DSGD
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.gradient_coding import GradientCoding
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.errors import ConfigError
from fedlearn.pipeline.clip import Clip
from fedlearn.policies.clock import Clock
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import CyclicSampling, FullParticipation
from fedlearn.policies.schedule import Constant
from fedlearn.policies.weighting import RatioWeighting, UniformWeighting
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.protocols.coded import Coded
from fedlearn.protocols.gossip import Gossip, metropolis
from fedlearn.protocols.synchronous import Synchronous
from fedlearn.vectors import digest

FULL = LocalWork(steps=1, batch_size=None)
N = len(SIZES)
RUNS = [
    ("synchronous", Scaffold(lr=0.3), {"cohort": 3}),
    ("asynchronous", FedBuff(lr=0.3, buffer=2), {"cohort": 4, "clock": Clock(spread=1.0)}),
    ("coded", GradientCoding(lr=0.3, replication=2), {"local": FULL, "clock": Clock(spread=1.0)}),
    ("gossip", DSGD(lr=0.3), {}),
]
PROTOCOLS = {"synchronous": Synchronous(), "asynchronous": Asynchronous(), "coded": Coded(stragglers=0.2),
             "gossip": Gossip()}


@pytest.mark.parametrize(("name", "algorithm", "choices"), RUNS, ids=[run[0] for run in RUNS])
def test_a_run_repeats_and_continues_from_its_snapshot_to_the_same_bits(name, algorithm, choices, tmp_path):
    e = experiment(algorithm, rounds=6, protocol=PROTOCOLS[name], **choices)
    whole, reports = play(e)
    again, _ = play(e)
    assert digest(whole) == digest(again)

    loop, workers = begin(e, states=tmp_path)
    for r in range(3):
        loop.round(r)
    tensors, meta = loop.snapshot()
    tensors = {path: t.clone() for path, t in tensors.items()}
    workers.commit(loop.states())
    later, _ = begin(e, states=tmp_path)
    later.restore(tensors, meta)
    rest = [later.round(r) for r in range(3, 6)]
    assert digest(later.model()) == digest(whole)
    assert [report.digest for report in rest] == [report.digest for report in reports[3:]]
    assert rest[-1].simulated == reports[-1].simulated
    assert rest[-1].cohort == reports[-1].cohort


def test_fedbuff_with_equal_speeds_and_a_full_buffer_is_fedavg():
    # Full batches, so that the numbering of the random streams does not matter.
    local = LocalWork(steps=3, batch_size=None)
    sync, _ = play(experiment(FedAvg(lr=0.2), weighting=UniformWeighting(), local=local, stack=False))
    buffered, reports = play(experiment(FedBuff(lr=0.2, buffer=N), protocol=Asynchronous(), local=local))
    assert digest(sync) == digest(buffered)
    assert all(report.extra["staleness"] == 0 for report in reports)


def test_slow_clients_arrive_stale_and_the_clock_never_runs_backwards():
    e = experiment(FedBuff(lr=0.2, buffer=1), rounds=12, protocol=Asynchronous(), cohort=4, clock=Clock(spread=1.5))
    _, reports = play(e)
    assert max(report.extra["staleness"] for report in reports) > 0
    times = [report.simulated for report in reports]
    assert times == sorted(times) and times[-1] > 0
    # The first round sends to everybody at work, every later one to who came free.
    assert [len(report.cohort) for report in reports] == [4] + [1] * 11


def test_too_stale_updates_do_not_count():
    e = experiment(FedBuff(lr=0.2, buffer=1, max_staleness=0), rounds=8, protocol=Asynchronous(), cohort=4,
                   clock=Clock(spread=1.0))
    _, reports = play(e)
    assert all(report.extra["staleness"] == 0 for report in reports)
    assert sum(report.bytes_up for report in reports) > 8 * reports[0].records[0].bytes_up


def test_coded_rounds_without_stragglers_are_gradient_descent():
    gd, _ = play(experiment(FedAvg(lr=0.3), local=FULL, task=blobs(dtype=torch.float64)))
    coded, reports = play(experiment(GradientCoding(lr=0.3, replication=2), protocol=Coded(stragglers=0.0), local=FULL,
                                     task=blobs(dtype=torch.float64)))
    assert torch.allclose(gd, coded, rtol=0, atol=1e-12)
    assert all(report.extra["decoding_error"] < 1e-20 for report in reports)


def test_coded_rounds_leave_out_the_slowest():
    e = experiment(GradientCoding(lr=0.3, replication=2), protocol=Coded(stragglers=0.34), local=FULL,
                   clock=Clock(spread=1.0))
    _, reports = play(e)
    machines = len(reports[0].cohort)
    for report in reports:
        assert len(report.records) == machines - int(0.34 * machines)
    patient = experiment(GradientCoding(lr=0.3, replication=2), protocol=Coded(stragglers=0.0), local=FULL,
                         clock=Clock(spread=1.0))
    assert reports[-1].simulated < play(patient)[1][-1].simulated


def test_gossip_on_the_complete_graph_is_fedavg():
    local = LocalWork(steps=2, batch_size=None)
    sync, _ = play(experiment(FedAvg(lr=0.2), weighting=UniformWeighting(), local=local,
                              task=blobs(dtype=torch.float64)))
    mixed, reports = play(experiment(DSGD(lr=0.2), protocol=Gossip("complete"), local=local,
                                     task=blobs(dtype=torch.float64)))
    assert torch.allclose(sync, mixed, rtol=0, atol=1e-13)
    assert reports[-1].extra["consensus_distance"] < 1e-13
    # Everybody sends the model to all others.
    assert reports[0].bytes_up == N * (N - 1) * mixed.numel() * 8 == reports[0].bytes_down


@pytest.mark.parametrize("graph", ["ring", "complete", "star", "regular"])
def test_mixing_is_doubly_stochastic(graph):
    near = Gossip(graph, degree=3).adjacency(8, np.random.default_rng(0))
    matrix = np.zeros((8, 8))
    for i, row in enumerate(metropolis(near)):
        matrix[i, [i, *near[i]]] = row
    assert np.allclose(matrix.sum(0), 1) and np.allclose(matrix.sum(1), 1) and np.allclose(matrix, matrix.T)
    assert np.sort(np.abs(np.linalg.eigvalsh(matrix)))[-2] < 1


def test_bytes_are_those_of_the_payloads():
    x, (report, *_) = play(experiment(Scaffold(lr=0.1), cohort=3))
    assert report.bytes_down == 3 * 2 * 4 * x.numel() == report.bytes_up


def test_a_pipeline_stage_bounds_what_the_server_sees():
    moved = [play(experiment(FedAvg(lr=0.5), rounds=1, pipeline=stages))[0]
             for stages in ({}, {"clip": Clip(norm=0.01)})]
    start = blobs().initial(0)
    assert (moved[0] - start).norm() > 0.02
    assert 0 < (moved[1] - start).norm() <= 0.01 * 1.0001


@dataclass(frozen=True)
class Remembering(FedBuff):
    """FedBuff with a client state, and an upload that is averaged plainly."""

    unweighted: ClassVar[frozenset[str]] = frozenset({"one"})

    def client_init(self, x0):
        return torch.zeros_like(x0)

    def local_finish(self, y, b, c, info):
        dx = y - b["x"] + 0.1 * c
        return {"dx": dx, "one": torch.ones(1)}, c + dx

    def server_update(self, s, mean, info):
        assert mean["one"].item() == 1.0
        return super().server_update(s, mean, info)


@pytest.mark.parametrize("max_staleness", [None, 1, 0])
def test_asynchronous_clients_keep_their_states_across_a_restart(max_staleness, tmp_path):
    e = experiment(Remembering(lr=0.2, buffer=1, max_staleness=max_staleness), rounds=14, protocol=Asynchronous(),
                   cohort=4, clock=Clock(spread=1.0))
    whole, _ = play(e)
    for stop in range(1, 14, 3):
        folder = tmp_path / str(stop)
        loop, workers = begin(e, states=folder)
        for r in range(stop):
            loop.round(r)
        tensors, meta = loop.snapshot()
        tensors = {path: t.clone() for path, t in tensors.items()}
        workers.commit(loop.states())
        workers.commit(loop.states(), [])
        later, _ = begin(e, states=folder)
        later.restore(tensors, meta)
        for r in range(stop, 14):
            later.round(r)
        assert digest(later.model()) == digest(whole), stop


@pytest.mark.parametrize(("algorithm", "choices", "message"), [
    (DSGD(), {"protocol": Gossip(), "sampling": CyclicSampling()},
     r"sampling: found 'cyclic'; allowed: uniform or full"),
    (DSGD(), {"protocol": Gossip(), "reduce": "fast"}, r"reduce: found 'fast'; allowed: exact with protocol=gossip"),
    (DSGD(), {"protocol": Gossip(), "stack": True}, r"stack: found True; allowed: "),
    (DSGD(), {"protocol": Gossip(), "schedule": Constant(server=True)}, r"schedule.server: found True"),
    (FedBuff(), {"protocol": Asynchronous(), "sampling": FullParticipation()},
     r"sampling: found 'full'; allowed: uniform or proportional"),
    (GradientCoding(replication=2), {"protocol": Coded(), "local": FULL, "sampling": CyclicSampling()},
     r"sampling: found 'cyclic'; allowed: uniform or full with protocol=coded"),
    (FedAvg(), {"rounds": "3"}, r"rounds: found '3'; allowed: a whole number"),
    (FedAvg(), {"rounds": 2.0}, r"rounds: found 2.0; allowed: a whole number"),
    (FedAvg(), {"seed": -1}, r"seed: found -1; allowed: a number >= 0"),
    (FedAvg(), {"backend": "ray"}, r"backend: found 'ray'; allowed: an object with open"),
    (FedAvg(), {"cohort": 7}, r"cohort: found 7; allowed: 1 to 6, the number of clients"),
    (FedAvg(), {"cohort": 0}, r"cohort: found 0; allowed: 1 to 6"),
    (DSGD(), {}, r"protocol: found 'Synchronous'; allowed: protocol=gossip with algorithm DSGD"),
    (FedBuff(), {}, r"protocol: found 'Synchronous'; allowed: protocol=asynchronous with algorithm FedBuff"),
    (FedAvg(), {"protocol": Asynchronous()},
     r"protocol: found 'Asynchronous'; allowed: protocol=synchronous with algorithm FedAvg"),
    (FedBuff(), {"protocol": Asynchronous(), "weighting": RatioWeighting()},
     r"weighting: found 'ratio'; allowed: uniform with protocol=asynchronous"),
    (DSGD(), {"protocol": Gossip(), "cohort": 3}, r"cohort: found 3; allowed: null with protocol=gossip"),
    (DSGD(), {"protocol": Gossip(), "pipeline": {"clip": Clip()}}, r"pipeline: found \['clip'\]; allowed: none"),
    (DSGD(), {"protocol": Gossip("regular", 6)}, r"protocol.degree: found 6; allowed: less than the 6 nodes"),
    (GradientCoding(), {"protocol": Coded()}, r"local: found .*steps=1.* with protocol=coded"),
    (FedAvg(), {"reduce": "exakt"}, r"reduce: found 'exakt'; .*did you mean exact"),
    (FedAvg(), {"rounds": 0}, r"rounds: found 0; allowed: a number >= 1"),
])
def test_choices_that_cannot_go_together_are_refused(algorithm, choices, message):
    with pytest.raises(ConfigError, match=message):
        experiment(algorithm, **choices)
