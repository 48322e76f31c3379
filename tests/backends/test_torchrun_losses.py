"""Ranks that are lost, at every point of a round: replaced, the round run again, and the same bits in the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from backends.unruly import Scarce
from problems import begin, blobs, experiment, losses, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.backends.torchrun.coordinator import Coordinator
from fedlearn.errors import WorkerError
from fedlearn.faults import WORKER, Fault, Faults, lead
from fedlearn.vectors import digest

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]
LARGE = blobs(features=20_000)   # 80,019 parameters: their partial sums travel by themselves


def final(algorithm: Any, rounds: int, task: Any = LARGE) -> str:
    return digest(play(experiment(algorithm, rounds, task=task, cohort=5))[0])


def pids(workers: Coordinator) -> dict[int, int]:
    return {child.seat: child.process.pid for child in workers.children}


class Disturbed:
    """A run on ranks with faults; ``each`` is called before every round."""

    def __init__(self, folder: Path, schedule: list[Fault], algorithm: Any = None, rounds: int = 2, task: Any = LARGE,
                 each: Callable[[Coordinator, int], None] = lambda workers, r: None, silence: float = 0.0,
                 **settings: Any) -> None:
        backend = Torchrun(**{"workers": 3, "timeout": 30.0, **settings})
        e = experiment(algorithm or Scaffold(), rounds, task=task, cohort=5, backend=backend,
                       faults=Faults(tuple(schedule), folder))
        loop, workers = begin(e)
        self.pids, self.events = [pids(workers)], []
        try:
            with lead(e.faults):
                for r in range(rounds):
                    workers.group.timeout = silence or workers.group.timeout
                    each(workers, r)
                    try:
                        loop.round(r)
                    finally:
                        self.events += losses(workers.events())
                        self.pids.append(pids(workers))
        finally:
            workers.close()
        self.digest = digest(loop.model())

    def kept(self, r: int) -> int:
        """Return how many ranks went through round ``r`` with the same process."""
        return sum(self.pids[r].get(seat) == pid for seat, pid in self.pids[r + 1].items())


@pytest.mark.parametrize("kind, algorithm", [("kill", FedAvg()), ("kill", Scaffold()), pytest.param(
    "freeze", Scaffold(), marks=pytest.mark.slow)], ids=["kill fedavg", "kill scaffold", "freeze scaffold"])
def test_a_rank_that_is_lost_at_any_point_changes_no_bit(kind: str, algorithm: Any, tmp_path: Path) -> None:
    rounds = len(WORKER) + 1
    run = Disturbed(tmp_path, [Fault(kind, point, r) for r, point in enumerate(WORKER)], algorithm, rounds,
                    silence=4.0 * (kind == "freeze"))
    assert run.digest == final(algorithm, rounds)
    why = "was killed by SIGKILL" if kind == "kill" else "gave no sign of life for 4 s"
    # On a busy machine a survivor may come too late for the new group, and be replaced as well.
    struck = [event for event in run.events if why in event["why"]]
    assert [(event["event"], event["round"]) for event in struck] == [("rank lost", r) for r in range(len(WORKER))]
    for event in run.events:
        assert event["who"].startswith("rank ") and "(process " in event["who"]
        assert 0 < event["recovery_seconds"] < 60
    assert run.events[-1]["ranks"] == 3
    if len(run.events) == len(struck):
        assert [run.kept(event["round"]) for event in run.events] == len(WORKER) * [1]


def test_what_is_dropped_altered_or_hangs_changes_no_bit(tmp_path: Path) -> None:
    run = Disturbed(tmp_path, [Fault("drop", "upload", 0), Fault("corrupt", "upload", 1),
                               Fault("hang", "train", 2, seconds=600)], rounds=4, hang=2.0)
    assert run.digest == final(Scaffold(), 4)
    dropped, altered, hung = run.events
    assert [event["round"] for event in run.events] == [0, 1, 2]
    assert "it dropped an answer of round 0" in dropped["why"] and run.kept(0) == 2   # the process is well
    assert "the answer of rank" in altered["why"] and "arrived altered" in altered["why"] and run.kept(1) == 1
    assert "took no step for 2 s on client" in hung["why"] and "faults.py" in hung["why"] and run.kept(2) == 1


def test_a_small_answer_that_is_altered(tmp_path: Path) -> None:
    run = Disturbed(tmp_path, [Fault("corrupt", "upload", 0)], task=blobs())
    assert run.digest == final(Scaffold(), 2, blobs())
    assert "arrived altered" in run.events[0]["why"]


def test_two_at_once_and_another_one_while_they_are_replaced(tmp_path: Path) -> None:
    pending = []

    def each(workers: Coordinator, r: int) -> None:
        if r == 1:
            doomed = workers.children[0].process
            start = workers.gang.start

            def again(seats: Any) -> None:
                start(seats)
                with suppress(IndexError):
                    pending.pop().kill()     # a survivor, while newcomers start

            workers.gang.start = again    # type: ignore[method-assign]
            pending.append(workers.children[2].process)
            workers.children[1].process.kill()
            doomed.kill()

    run = Disturbed(tmp_path, [], each=each, workers=4, rounds=3)
    assert run.digest == final(Scaffold(), 3)
    assert len(run.events) == 3 and {event["round"] for event in run.events} == {1}
    assert run.kept(0) == 3 and run.kept(1) == 0 and run.kept(2) == 3


def test_a_newcomer_that_dies_is_replaced_too(tmp_path: Path) -> None:
    def each(workers: Coordinator, r: int) -> None:
        start, left = workers.gang.start, [1]

        def doomed(seats: Any) -> None:
            start(seats)
            if seats and left:
                left.pop()
                workers.children[0].process.kill()

        workers.gang.start = doomed    # type: ignore[method-assign]

    run = Disturbed(tmp_path, [Fault("kill", "train", 0)], each=each, workers=2, rounds=1)
    assert run.digest == final(Scaffold(), 1)
    assert ["(while it started)" in event["why"] for event in run.events] == [False, True]


def test_if_nobody_can_be_started_the_others_go_on(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    algorithm = Scarce(marker=str(marker))

    def each(workers: Coordinator, r: int) -> None:
        if r == 1:
            marker.touch()      # from here on no process that unpacks the algorithm lives

    run = Disturbed(tmp_path, [Fault("kill", "train", 1)], algorithm, 3, each=each)
    assert run.digest == final(FedAvg(), 3)
    assert [len(held) for held in run.pids] == [2, 2, 1, 1]
    assert run.events[-1] == {"event": "fewer ranks", "round": 1, "ranks": 2, "wanted": 3}


def test_more_losses_than_may_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"^2 ranks were lost in round 1, allowed: 1 \(backend.replacements\); the "
                       r"last one: rank 1 \(process \d+\): was killed by SIGKILL, in round 1; .*resume"):
        Disturbed(tmp_path, 3 * [Fault("kill", "train", 1)], workers=2, replacements=1)


def test_ranks_that_hang_again_and_again_are_named_with_the_client(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"took no step for 1.5 s on client .*\(backend.hang\), in round 0"):
        Disturbed(tmp_path, 2 * [Fault("hang", "train", 0, seconds=600)], workers=2, replacements=1, hang=1.5)


@pytest.mark.slow
def test_ten_losses_in_a_row_leave_no_thread_and_no_connection(tmp_path: Path) -> None:
    held = []

    def each(workers: Coordinator, r: int) -> None:
        processes = "self", str(workers.children[1].process.pid)     # this one, and one that survives them all
        held.append([len(os.listdir(f"/proc/{pid}/{what}")) for pid in processes for what in ("task", "fd")])
        if r < 10:
            workers.children[0].process.kill()

    run = Disturbed(tmp_path, [], FedAvg(), rounds=11, each=each)
    assert run.digest == final(FedAvg(), 11)
    assert len(run.events) == 10 and [run.kept(r) for r in range(11)] == 10 * [1] + [2]
    assert held[10] == held[1]
