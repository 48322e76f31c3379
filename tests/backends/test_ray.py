"""Ray actors: the same bits whoever runs whom, dies or freezes; errors that arrive; a cluster left as it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backends.unruly import Huge, Leaves, Signalled, Slow, Writes, poisoned
from problems import begin, blobs, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.ray.turn import Turn
from fedlearn.errors import ClientError, ConfigError, NonFiniteUpdate, UpdateOverflow, WorkerError
from fedlearn.vectors import digest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tidy")]
joined = pytest.mark.usefixtures("ray_cluster")


def final(backend: Any = None, **choices: Any) -> str:
    choices = {"algorithm": Scaffold(), "cohort": 3, "rounds": 3, **choices}
    return digest(play(experiment(**choices, **({"backend": backend} if backend else {})))[0])


# This one comes before the session's cluster starts: a process is connected to one cluster at a time.
def test_a_cluster_of_its_own_with_more_actors_than_cores() -> None:
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        pytest.skip("the process is connected to a cluster already")
    assert final(RayActors(workers=(os.cpu_count() or 1) + 1)) == final()
    assert not ray.is_initialized()


@pytest.mark.parametrize(("asked", "found"), [(None, 0), (5, 5)])
def test_actors_of_a_cluster_of_its_own_are_as_nice_as_asked(asked: int | None, found: int) -> None:
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        pytest.skip("the process is connected to a cluster already")
    _, workers = begin(experiment(FedAvg(), backend=RayActors(workers=1, niceness=asked)))
    try:
        assert ray.get(workers.seats[0].actor.__ray_call__.remote(lambda actor: os.nice(0))) == found
    finally:
        workers.close()


@joined
def test_the_niceness_of_a_joined_cluster_cannot_be_set() -> None:
    with pytest.raises(ConfigError, match="^backend.niceness: found 5; allowed: null .*RAY_worker_niceness=5"):
        begin(experiment(FedAvg(), backend=RayActors(workers=1, niceness=5)))


@joined
@pytest.mark.parametrize(("workers", "chunk"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_neither_the_number_of_actors_nor_the_chunks_change_a_bit(workers: int, chunk: int) -> None:
    assert final(RayActors(workers=workers, chunk=chunk), cohort=5) == final(cohort=5)


@joined
def test_float64_and_more_actors_than_clients() -> None:
    choices = {"task": blobs((4, 9), dtype=torch.float64), "algorithm": FedAvg(), "cohort": 2}
    assert final(RayActors(workers=3), **choices) == final(**choices)


@joined
def test_records_are_those_of_one_process() -> None:
    here = play(experiment(Scaffold(), rounds=2))[1]
    there = play(experiment(Scaffold(), rounds=2, backend=RayActors(workers=2)))[1]
    assert [r.records for r in here] == [r.records for r in there]


@joined
def test_a_joined_cluster_is_left_running_without_its_actors() -> None:
    import ray
    free = ray.cluster_resources()["CPU"]
    _, workers = begin(experiment(FedAvg(), backend=RayActors(workers=2)))
    workers.close()
    workers.close()
    assert ray.is_initialized()
    for _ in range(100):
        if ray.available_resources().get("CPU") == free:
            break
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == free


@joined
def test_a_nan_is_its_clients_and_the_actors_go_on() -> None:
    loop, workers = begin(experiment(FedAvg(), task=poisoned(4), backend=RayActors(workers=2)))
    for _ in range(2):
        with pytest.raises(NonFiniteUpdate, match="client 4, round 0"):
            loop.round(0)
    workers.close()


@joined
def test_partial_sums_that_do_not_fit_together_are_refused() -> None:
    loop, workers = begin(experiment(Huge(size=3e6), cohort=2, backend=RayActors(workers=2, chunk=1)))
    with pytest.raises(UpdateOverflow, match="round 0"):
        loop.round(0)
    workers.close()


@joined
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_actor_does_not_change_a_bit(tmp_path: Path, sent: int) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    algorithm = Signalled(marker=str(marker), coordinator=os.getpid(), signal=sent)
    loop, workers = begin(experiment(algorithm, rounds=3, backend=RayActors(workers=2, chunk=1)))
    workers.backend = replace(workers.backend, timeout=4.0)
    for r in range(3):
        loop.round(r)
    assert not marker.exists()
    workers.close()
    assert digest(loop.model()) == final(algorithm=algorithm, cohort=None)


@joined
@pytest.mark.parametrize("reduce", ["exact", "fast"])
def test_an_actor_that_is_lost_while_its_large_sum_is_fetched(monkeypatch: pytest.MonkeyPatch, reduce: str) -> None:
    import ray
    choices: dict[str, Any] = {"task": blobs(features=20_000), "algorithm": FedAvg(), "rounds": 1, "cohort": 4}
    killed, add = [], Turn._add

    def kill_after_the_second_piece(turn: Turn, seat: Any, piece: Any) -> None:
        add(turn, seat, piece)
        if not killed and seat.added == 2 * len(piece):
            ray.kill(seat.actor)
            killed.append(seat)

    monkeypatch.setattr("fedlearn.backends.ray.turn.PIECE", 10_000)
    monkeypatch.setattr(Turn, "_add", kill_after_the_second_piece)
    x = play(experiment(**choices, reduce=reduce, backend=RayActors(workers=2)))[0]
    assert killed
    assert digest(x) == final(**choices) if reduce == "exact" else torch.allclose(x, play(experiment(**choices))[0])


@joined
def test_an_algorithm_that_writes_to_what_all_actors_share() -> None:
    loop, workers = begin(experiment(Writes(), cohort=1, backend=RayActors(workers=1)))
    with pytest.raises(ClientError, match="changed the broadcast 'x'.*local_init"):
        loop.round(0)
    workers.close()


@joined
def test_too_many_lost_actors_are_an_error(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    algorithm = Signalled(marker=str(marker), coordinator=os.getpid())
    loop, workers = begin(experiment(algorithm, backend=RayActors(workers=1, replacements=0)))
    loop.round(0)
    with pytest.raises(WorkerError, match="1 Ray actors were lost in round 1, allowed: 0"):
        loop.round(1)
    workers.close()


@joined
def test_slow_actors_are_waited_for() -> None:
    loop, workers = begin(experiment(Slow(seconds=3.0), cohort=1, backend=RayActors(workers=1)))
    workers.backend = replace(workers.backend, timeout=1.0)
    assert len(loop.round(0).records) == 1
    workers.close()


@joined
def test_an_actor_that_dies_at_its_start() -> None:
    with pytest.raises(WorkerError, match="a Ray actor died at its start"):
        begin(experiment(Leaves(), backend=RayActors(workers=1)))


@joined
def test_a_cluster_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.backends.ray.workers.START", 0.0)
    with pytest.raises(WorkerError, match=r"\d of 9 Ray actors came up within 5 s \(the cluster has 3 CPUs"):
        begin(experiment(FedAvg(), backend=RayActors(workers=9, timeout=5)))


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlearn\[ray\]'"):
        begin(experiment(FedAvg(), backend=RayActors()))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"timeout": 0}, {"chunk": -1}, {"replacements": -1},
                                   {"niceness": 20}])
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"^backend.{next(iter(wrong))}: "):
        RayActors(**wrong)
