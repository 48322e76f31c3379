"""Data that stays on its machines, on Ray: clients go to who holds them, also after losses, with the same bits."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from backends.private import private
from problems import begin, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.holders import Runs
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.ray.machines import Machine, Machines, common, spread
from fedlearn.backends.ray.seat import Seat
from fedlearn.errors import DataError, WorkerError
from fedlearn.faults import Fault, Faults
from fedlearn.vectors import digest

pytest.importorskip("ray")
pytestmark = pytest.mark.ray
on_ray = pytest.mark.usefixtures("tidy", "ray_cluster")
HERE = Path(__file__).parent
A, B, C = (Machine(name, f"10.0.0.{i}", 2) for i, name in enumerate("abc", 1))
TASK: Any = SimpleNamespace(sizes=np.arange(1, 7))


def held(workers: Any) -> list[list[int]]:
    return sorted([m for m in range(6) if seat.has(m)] for seat in workers.seats)


@on_ray
@pytest.mark.parametrize(("algorithm", "machines", "chunk"), [(Scaffold(), 3, 1), (FedAvg(), 2, 0)])
def test_the_bits_of_one_place_also_after_a_loss(algorithm: Any, machines: int, chunk: int, tmp_path: Path) -> None:
    plain = experiment(algorithm, rounds=3)
    faults = Faults((Fault("kill", "train", 1),), tmp_path / "faults")
    faults.folder.mkdir()
    loop, workers = begin(replace(plain, task=private(tmp_path / "data", machines), faults=faults,
                                  backend=RayActors(workers=3, chunk=chunk)))
    theirs = [[0, 3], [1, 4], [2, 5]] if machines == 3 else [[], [0, 2, 4], [1, 3, 5]]
    assert held(workers) == theirs
    for r in range(3):
        loop.round(r)
    assert held(workers) == theirs
    _, pid = faults.fired()[0]
    [event] = workers.events()
    assert event["who"].startswith("actor on seat ") and f"(process {pid}) at 127.0.0.1" in event["who"]
    assert 0 < event["recovery_seconds"] < 60
    workers.close()
    assert digest(loop.model()) == digest(play(plain)[0])


@on_ray
def test_a_client_that_nobody_holds_is_named(tmp_path: Path) -> None:
    loop, workers = begin(experiment(FedAvg(), task=private(tmp_path / "data", 3), backend=RayActors(workers=2)))
    workers.startup = 1.0
    with pytest.raises(WorkerError, match=r"client 5: its data \(and that of 1 others\) is on no machine that ha"
                                          r"d .* within [12] s in round 0 has it; machines that are up: 127.0.0.1; .*"):
        loop.round(0)
    workers.machines = None     # as on a cluster of its own, to which no machine can come
    with pytest.raises(DataError, match="client 5: its data is on none of the 2 workers here; allowed: clients whose"):
        loop.round(0)
    workers.close()


@on_ray
def test_a_machine_without_its_folder_is_named(tmp_path: Path) -> None:
    task = private(tmp_path / "data", 1)
    (tmp_path / "data/1/clients.npy").unlink()
    with pytest.raises(WorkerError, match=r"a Ray actor at 127.0.0.1 died at its start: .*DataError: .*data/1: .*No"):
        begin(experiment(FedAvg(), task=task, backend=RayActors(workers=1)))


def machines(*there: Machine) -> Machines:
    """Machines of a cluster that has these; its head has no CPU."""
    nodes = [{"NodeID": m.node, "NodeManagerAddress": m.address, "Alive": True, "Resources": {"CPU": 2.0 * m.room}}
             for m in there]
    nodes += [{"NodeID": "head", "NodeManagerAddress": "10.0.0.9", "Alive": True, "Resources": {"memory": 1.0}},
              {"NodeID": "dead", "NodeManagerAddress": "10.0.0.8", "Alive": False, "Resources": {}}]
    return Machines(SimpleNamespace(nodes=lambda: nodes), TASK, 2)


def test_one_on_each_machine_first_then_again_where_there_is_room() -> None:
    assert machines(C, A, B).start(4, 0) == [A, B, C, A]
    assert spread([replace(A, room=1), B], 3) == [replace(A, room=1), B, B]
    assert spread([replace(A, room=1)], 2) == [replace(A, room=1)] * 2      # it waits for room, as everywhere on Ray
    with pytest.raises(WorkerError, match="has room for 0 of 1 actors with 2 CPUs each, on 0 machines, after 0 s"):
        machines().start(1, 0)


def test_an_actor_comes_back_where_it_was_or_on_a_machine_without_any() -> None:
    seats = [Seat(i + 1, object(), machine=machine) for i, machine in enumerate((A, B, B))]
    lost, too = seats[1:]
    assert machines(A, B, C).place(lost, seats, {"a": A, "b": B, "c": C}) == B
    found = machines()
    assert found.place(lost, seats, {"a": A}) is None
    back = Machine("new", B.address, 2)
    assert found.place(lost, seats, {"a": A, "c": C, "new": back}) == back      # the same address, if there is a choice
    lost.machine = back
    assert found.place(too, seats, {"a": A, "c": C, "new": back}) == back       # together again
    found.held["c"] = C, Runs([])
    assert found.place(too, seats, {"a": A, "c": C}) is None       # known to hold nobody


def test_who_can_be_spared_goes_where_a_missing_client_may_be() -> None:
    seats = [Seat(1, object(), holds=Runs([[0, 1]]), machine=A), Seat(2, object(), holds=Runs([]), machine=B)]
    found = machines(A, B, C)
    assert found.move(2, seats) == (seats[1], C)
    seats[1].holds = Runs([[3, 3]])
    with pytest.raises(DataError, match=r"client 2: its data .* machines without one: 10.0.0.3; .*backend.workers=3"):
        found.move(2, seats)
    found.held["c"] = C, Runs([[5, 5]])
    assert found.move(2, seats) is None
    assert machines(A, C).move(2, [replace(seats[0]), replace(seats[0], number=3)])[1] == C     # two on one machine


def test_whose_data_was_lost_with_which_machine() -> None:
    found, seat = machines(A), Seat(2, object(), pid=7, holds=Runs([[2, 4]]), machine=B)
    found.meet(seat, common(TASK))
    assert "client 3: its data (and that of 1 others) was on the machine at 10.0.0.2, which is lost" in str(
        found.missing([3, 4], 6, 61.2))
    assert found.gone(seat) and not found.gone(replace(seat, machine=A))
    other = SimpleNamespace(sizes=np.arange(2, 8))
    with pytest.raises(DataError, match=r"actor on seat 2 \(process 7\) at 10.0.0.2: found .*the same federation.json"):
        found.meet(seat, common(other))


@pytest.mark.slow
def test_a_machine_that_dies_is_waited_for_and_comes_back(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(HERE / "ray_machines.py"), str(tmp_path)], timeout=150,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    missed, found = done.stdout.splitlines()
    assert re.fullmatch(r"client \d: its data .*was on the machine at 127.0.0.1, which is lost, and nobody who came "
                        r"within .* s in round 1 has it; machines that are up: 127.0.0.1; start .*resume.*", missed)
    assert found == f"actor lost True {digest(play(experiment(Scaffold()))[0])}"
