"""Who is refused or late, and the model without them, do not depend on where clients run."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from problems import blobs, experiment, play

from fedlearn.algorithms.ada_gd import AdaGD
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.inprocess import InProcess
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.policies.clock import Clock
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.participation import Participation
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.vectors import digest

SIZES = (7, 23, 12, 40, 5, 18, 9, 30, 14, 21)
ALGORITHMS = {"scaffold": Scaffold(lr=0.2), "mime": Mime(), "individual": AdaGD(lr=0.1, eps=0.8)}
CLOCK = Clock(spread=1.0, straggler_probability=0.2)
BAD = {2, 3, 4, 7}      # two whose numbers are none, two whose labels no model has


def spoiled() -> SupervisedTask:
    task = blobs(SIZES)
    clients = [task.store.client(m) for m in range(len(SIZES))]
    for m in (2, 3):
        clients[m] = clients[m][0].clone(), clients[m][1]
        clients[m][0][:] = torch.nan
    for m in (4, 7):
        clients[m] = clients[m][0], clients[m][1] + 7
    return SupervisedTask(task.model, "cross_entropy", clients, task.test)


def told(backend: Any, name: str, stack: bool, policy: str = "refuse", rounds: int = 4) -> tuple[Any, ...]:
    """Return the hash of a run, and by round who was in, who was refused and who was late."""
    local = LocalWork(steps=2, batch_size=5)
    x, reports = play(experiment(ALGORITHMS[name], rounds, task=spoiled(), backend=backend, cohort=5, stack=stack,
                                 clock=CLOCK, local=local, on_bad_update=policy,
                                 participation=Participation(over=1.6, deadline=1.0)))
    return digest(x), [([record.client for record in report.records],
                        [(error.client, error.what) for error in report.refused], sorted(report.late),
                        report.simulated, report.bytes_up, report.void) for report in reports]


@pytest.fixture(scope="module")
def reference() -> Any:
    return cache(lambda name, stack, policy: told(InProcess(), name, stack, policy))


CASES = [("scaffold", False, "refuse"), ("scaffold", True, "refuse"), ("mime", False, "refuse"),
         ("individual", True, "drop"), ("scaffold", True, "drop")]


def test_the_cases_leave_some_out(reference: Any) -> None:
    for case in CASES:
        _, rounds = reference(*case)
        refused = {m for _, out, _, _, _, _ in rounds for m, _ in out}
        assert refused and refused <= BAD, case
        assert any(late for _, _, late, _, _, _ in rounds) and not any(void for *_, void in rounds)
        assert not any(BAD & set(accepted) for accepted, *_ in rounds)


@pytest.mark.torchrun
@pytest.mark.parametrize(("name", "stack", "policy"), CASES)
def test_on_torchrun_ranks(name: str, stack: bool, policy: str, reference: Any) -> None:
    assert told(Torchrun(workers=3), name, stack, policy) == reference(name, stack, policy)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("name", "stack", "policy"), CASES[1:4])
def test_on_ray_actors(name: str, stack: bool, policy: str, reference: Any) -> None:
    assert told(RayActors(workers=2, chunk=1), name, stack, policy) == reference(name, stack, policy)


def all_refused(backend: Any) -> None:
    x, (report,) = play(experiment(Scaffold(), 1, task=blobs(), backend=backend, on_bad_update="refuse",
                                   max_update_norm=1e-12, stack=False))
    assert report.void and len(report.refused) == 6 and not report.records and report.bytes_up == 0
    assert digest(x) == digest(blobs().initial(0))


@pytest.mark.parametrize("backend", [InProcess(), pytest.param(Torchrun(workers=2), marks=pytest.mark.torchrun)])
def test_a_round_in_which_everybody_is_refused(backend: Any) -> None:
    all_refused(backend)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_round_in_which_everybody_is_refused_on_actors() -> None:
    all_refused(RayActors(workers=2, chunk=1))
