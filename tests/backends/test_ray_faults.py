"""Whatever happens to an actor, at whatever point of a round: the same bits, and an event that names it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from problems import begin, blobs, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.ray.workers import RayWorkers
from fedlearn.errors import WorkerError
from fedlearn.faults import Fault, Faults
from fedlearn.vectors import digest

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tidy", "ray_cluster")]
# Every death once, with SCAFFOLD, whose clients have states, those in which states matter.
DEATHS = {FedAvg(): (Fault("kill", "receive", 0), Fault("kill", "idle", 1), Fault("drop", "upload", 3),
                     Fault("corrupt", "upload", 4)),
          Scaffold(): (Fault("kill", "upload", 0), Fault("kill", "reduce", 1), Fault("corrupt", "upload", 2),
                       Fault("kill", "train", 3), Fault("kill", "train", 3))}
NEW = {"event", "round", "who", "why", "recovery_seconds", "clients"}


def told(algorithm: Any, schedule: tuple[Fault, ...], rounds: int, folder: Path, capfd: Any, timeout: float = 30.0,
         hang: float | None = None, **choices: Any) -> list[dict]:
    """Run under faults; check the digest and that all faults fired and were told of, and return the events."""
    plain = experiment(algorithm, rounds=rounds, cohort=4, **choices)
    faults = Faults(schedule, folder)
    loop, workers = begin(replace(plain, faults=faults, backend=RayActors(workers=2, chunk=1, replacements=20)))
    workers.backend, events = replace(workers.backend, timeout=timeout, hang=hang), []
    for r in range(rounds):
        loop.round(r)
        events += workers.events()
    workers.close()
    assert digest(loop.model()) == digest(play(plain)[0])
    fired = faults.fired()
    assert sorted(fired) == list(range(len(schedule)))
    for i, (_, pid) in fired.items():
        mine = [event for event in events if f"(process {pid})" in event["who"]]
        assert len(mine) == 1, events
        [event] = mine
        assert event["event"] == "actor lost" and set(event) == NEW
        assert event["round"] - schedule[i].round in ((1,) if schedule[i].point == "idle" else (0,))
        assert 0 <= event["recovery_seconds"] < 60
        assert event["clients"] >= (schedule[i].point != "idle")
    assert capfd.readouterr() == ("", "")
    return events


@pytest.mark.parametrize("algorithm", DEATHS)
def test_killed_dropped_and_altered(algorithm: Any, tmp_path: Path, capfd: Any) -> None:
    events = told(algorithm, DEATHS[algorithm], 5, tmp_path, capfd)
    assert any("its checksum is another" in event["why"] for event in events)


@pytest.mark.parametrize(("algorithm", "schedule"), [
    (FedAvg(), (Fault("freeze", "receive", 0), Fault("freeze", "idle", 1))),
    (Scaffold(), (Fault("freeze", "reduce", 0), Fault("hang", "train", 1, 120.0)))])
def test_frozen_and_hung(algorithm: Any, schedule: tuple[Fault, ...], tmp_path: Path, capfd: Any) -> None:
    events = told(algorithm, schedule, 3, tmp_path, capfd, timeout=3.0, hang=4.0)
    assert any("no sign of life for 3 s" in event["why"] for event in events)
    hung = any(fault.kind == "hang" for fault in schedule)
    assert any("took no step for 4 s (backend.hang)" in event["why"] for event in events) == hung


def test_sums_that_are_fetched_in_pieces(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.backends.ray.turn.PIECE", 30_000)
    schedule = (Fault("corrupt", "upload", 0), Fault("kill", "reduce", 1), Fault("kill", "idle", 1))
    told(FedAvg(), schedule, 3, tmp_path, capfd, task=blobs(features=20_000))


def test_who_wakes_up_too_late_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    plain = experiment(Scaffold(), rounds=4, cohort=4)
    faults = Faults((Fault("freeze", "train", 1),), tmp_path)
    loop, workers = begin(replace(plain, faults=faults, backend=RayActors(workers=2, chunk=1)))
    workers.backend, actors = replace(workers.backend, timeout=2.0), [seat.actor for seat in workers.seats]
    with monkeypatch.context() as patch:
        patch.setattr(RayWorkers, "_kill", lambda *_: None)     # as if it could not be reached
        loop.round(0)
        loop.round(1)
        _, pid = faults.fired()[0]
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.5)     # it takes up its work where it was, and answers
        loop.round(2)
        loop.round(3)
        assert Path(f"/proc/{pid}").exists()
    workers.close()
    for actor in actors:
        ray.kill(actor)
    assert digest(loop.model()) == digest(play(plain)[0])


def test_no_replacement_is_left(tmp_path: Path) -> None:
    faults = Faults((Fault("kill", "train", 0),), tmp_path)
    loop, workers = begin(experiment(FedAvg(), faults=faults, backend=RayActors(workers=1, replacements=0)))
    with pytest.raises(WorkerError, match=r"the last one: actor on seat 1 \(process \d+\), its .* ended.*resume") as e:
        loop.round(0)
    assert e.value.code == 4
    [event] = workers.events()
    assert (event["recovery_seconds"], event["clients"]) == (None, 2)   # a third of the queue, an actor's first share
    workers.close()


def test_no_replacement_comes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults((Fault("kill", "train", 0),), tmp_path)
    loop, workers = begin(experiment(FedAvg(), faults=faults, backend=RayActors(workers=1)))
    workers.backend, workers.startup = replace(workers.backend, threads=100), 2.0   # there is no room for it
    with pytest.raises(WorkerError, match=r"no Ray actor is left in round 0: none of 1 .* came up within 2 s"):
        loop.round(0)
    workers.close()
