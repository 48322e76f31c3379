"""Torchrun ranks started from here: the same bits, errors that arrive, and nobody left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from backends.unruly import Huge, Leaves, Signalled, Sleeps, Slow, poisoned
from problems import begin, blobs, experiment, losses, play, setup_of

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.errors import ConfigError, NonFiniteUpdate, UpdateOverflow, WorkerError
from fedlearn.policies.local_work import LocalWork
from fedlearn.vectors import digest

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]
ROOT = Path(__file__).parents[2]


def final(backend=None, **choices) -> str:
    choices = {"algorithm": Scaffold(), "cohort": 3, "rounds": 3, **choices}
    return digest(play(experiment(**choices, **({"backend": backend} if backend else {})))[0])


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_number_of_ranks_does_not_change_a_bit(workers: int) -> None:
    # Cohorts of 3 unequal clients: with 4 ranks somebody is always idle.
    assert final(Torchrun(workers=workers)) == final()


def test_float64_too() -> None:
    choices = {"task": blobs(dtype=torch.float64), "algorithm": FedAvg(), "local": LocalWork(epochs=2, batch_size=5)}
    assert final(Torchrun(workers=2), **choices) == final(**choices)


def test_records_are_those_of_one_process() -> None:
    here = play(experiment(Scaffold(), rounds=2))[1]
    there = play(experiment(Scaffold(), rounds=2, backend=Torchrun(workers=2)))[1]
    assert [r.records for r in here] == [r.records for r in there]


def test_fast_sums_are_nearly_the_same() -> None:
    x, _ = play(experiment(FedAvg(), rounds=2))
    y, _ = play(experiment(FedAvg(), rounds=2, reduce="fast", backend=Torchrun(workers=2)))
    assert torch.allclose(x, y, atol=1e-5)


def test_a_nan_is_its_clients_and_the_ranks_go_on() -> None:
    for client in (3, 4):  # the largest runs in this process, the smallest may not
        loop, workers = begin(experiment(FedAvg(), task=poisoned(client), backend=Torchrun(workers=2)))
        for _ in range(2):
            with pytest.raises(NonFiniteUpdate, match=f"client {client}, round 0"):
                loop.round(0)
        workers.close()
        workers.close()


def test_partial_sums_that_do_not_fit_together_are_refused() -> None:
    loop, workers = begin(experiment(Huge(), backend=Torchrun(workers=4)))
    with pytest.raises(UpdateOverflow, match="round 0.*clip"):
        loop.round(0)
    workers.close()


def test_client_states_are_shared_and_pruned(tmp_path: Path) -> None:
    loop, workers = begin(experiment(Scaffold(), backend=Torchrun(workers=2)), states=tmp_path / "states")
    for r in range(2):
        loop.round(r)
        workers.commit(loop.states())
    assert len(list((tmp_path / "states").iterdir())) == 12
    workers.commit(loop.states(), [(0, 0)])
    assert len(list((tmp_path / "states").iterdir())) == 7
    workers.close()


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    algorithm = Signalled(marker=str(marker), coordinator=os.getpid())
    loop, workers = begin(experiment(algorithm, backend=Torchrun(workers=3, replacements=0)))
    loop.round(0)
    with pytest.raises(WorkerError, match=r"^rank [12] \(process \d+\): was killed by SIGKILL.* in round 1; .*"
                       "resume") as caught:
        loop.round(1)
    assert caught.value.code == 4
    assert [event["recovery_seconds"] for event in losses(workers.events())] == [None]
    with pytest.raises(WorkerError, match="broken or closed"):
        loop.round(2)
    workers.close()
    workers.close()


def test_a_frozen_rank_is_named(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    algorithm = Signalled(marker=str(marker), coordinator=os.getpid(), signal=signal.SIGSTOP)
    loop, workers = begin(experiment(algorithm, backend=Torchrun(workers=2, timeout=10, replacements=0)))
    workers.group.timeout = 3.0
    loop.round(0)
    with pytest.raises(WorkerError, match="rank 1 gave no sign of life for 3 s"):
        loop.round(1)
    workers.close()


def test_slow_ranks_are_waited_for() -> None:
    algorithm = Slow(seconds=3.5)
    loop, workers = begin(experiment(algorithm, backend=Torchrun(workers=2, timeout=10)))
    workers.group.timeout, workers.group.interval = 2.5, 0.2
    assert len(loop.round(0).records) == 6
    workers.close()


def test_a_rank_that_dies_at_its_start_is_known_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"rank 1 \(process \d+\) exited with status 3"):
        begin(experiment(Leaves(), backend=Torchrun(workers=2, timeout=100)))
    assert time.monotonic() - began < 90  # it did not wait for its timeout


def test_a_rank_that_stays_silent_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn.backends.torchrun.children.START", 0.0)
    with pytest.raises(WorkerError, match=r"rank 1 \(process \d+\) was not ready within 1.5 s"):
        begin(experiment(Sleeps(), backend=Torchrun(workers=2, timeout=1.5)))


def test_an_oracle_that_does_not_exist_is_the_same_error_as_here() -> None:
    with pytest.raises(ConfigError, match="^oracle: found 'none'"):
        begin(experiment(FedAvg(), oracle="none", backend=Torchrun(workers=2)))


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="^backend.port: found .*; allowed: a port that is free"):
            begin(experiment(FedAvg(), backend=Torchrun(workers=2, port=taken.getsockname()[1])))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"timeout": 0}, {"port": 70000}, {"devices": "gpu"},
                                   {"wire": "fp8"}, {"hang": -1.0}, {"replacements": -1}])
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"^backend.{next(iter(wrong))}: "):
        Torchrun(**wrong)


ORPHANS = """
import os, sys, time
from problems import begin, experiment
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.torchrun.backend import Torchrun
loop, workers = begin(experiment(FedAvg(), backend=Torchrun(workers=3)))
print(*[child.process.pid for child in workers.children], flush=True)
time.sleep(600)
"""


def test_ranks_end_with_a_killed_coordinator(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    assert len(pids) == 2
    assert list(tmp_path.glob("fedlearn-*")) == []
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        assert time.monotonic() < deadline, f"{pids} outlived their coordinator"
        time.sleep(0.05)


UNDER = """
import sys
from pathlib import Path
import torch
from problems import blobs, experiment, setup_of
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.errors import FedlearnError
from fedlearn.vectors import digest

backend, out, case = Torchrun(workers=7), Path(sys.argv[1]), sys.argv[2]
seed = backend.rank() if case == "differ" else 0
e = experiment(Scaffold(), rounds=3, cohort=3, backend=backend, task=blobs(seed=seed))
try:
    workers = backend.open(setup_of(e))
    if workers.rank == 0:
        loop = e.protocol.start(e, workers)
        for r in range(3):
            loop.round(r)
        if case == "equal":
            workers.close({"x": loop.model()})
        workers.close()
        said = digest(loop.model()) + " " + backend.describe()
    else:
        said = digest(workers.serve()["x"])
except FedlearnError as error:
    said = f"{type(error).__name__} {error}"
(out / str(backend.rank())).write_text(said)
"""


def under_torchrun(tmp_path: Path, case: str) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(UNDER)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(script), str(tmp_path), case], env=environ, check=True, timeout=120,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [(tmp_path / str(rank)).read_text() for rank in range(2)]


def test_under_torchrun_all_ranks_end_with_the_same_model(tmp_path: Path) -> None:
    said = under_torchrun(tmp_path, "equal")
    sha256, _, about = said[0].partition(" ")
    assert said[1] == sha256 == final()
    assert about == "2 ranks started by torchrun (backend.workers is not used), 1 thread each"


def test_under_torchrun_other_setups_are_refused_at_every_rank(tmp_path: Path) -> None:
    said = under_torchrun(tmp_path, "differ")
    assert said[0] == said[1]
    assert said[0].startswith("WorkerError rank 1 has another setup than rank 0")


def test_under_torchrun_ranks_hear_of_an_end_without_result(tmp_path: Path) -> None:
    assert under_torchrun(tmp_path, "fails")[1] == "WorkerError rank 0 ended without a result; see its own message"


def test_an_empty_cohort_gives_an_empty_sum() -> None:
    from fedlearn.work import Work
    e = experiment(FedAvg(), backend=Torchrun(workers=1))
    workers = e.backend.open(setup_of(e))
    reduced = workers.map_reduce(Work(0, 0, {}, [], [], e.local))
    assert reduced.records == [] and reduced.sum.layout is None
    workers.close()
