"""Whoever dies, wherever, on every backend: the run ends in the undisturbed hash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.struck import ALGORITHMS, ROUNDS, STRUCK, run
from problems import losses

from fedlearn.faults import Fault
from fedlearn.tracking.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
PLACES = ["inprocess", pytest.param("torchrun", marks=pytest.mark.torchrun), pytest.param("ray", marks=pytest.mark.ray)]
WORKERS = PLACES[1:]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hash of each algorithm's run in one process, in which nothing happens."""
    return {name: run("inprocess", name, tmp_path_factory.mktemp(name)).sha256 for name in ALGORITHMS}


def strike(backend: str, algorithm: str, kind: str, point: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own, which a fault strikes."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen([sys.executable, str(ROOT / "tests" / "faults" / "struck.py"), backend, algorithm, kind,
                             point, str(folder)], env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("backend", WORKERS)
@pytest.mark.parametrize(("kind", "point"), [("kill", "train"), ("kill", "reduce"), ("freeze", "train")])
def test_a_worker_that_dies(backend, algorithm, kind, point, tmp_path, undisturbed, request) -> None:
    if backend == "ray":
        request.getfixturevalue("ray_cluster")
    history = run(backend, algorithm, tmp_path, Fault(kind, point, STRUCK))
    assert (tmp_path / "marks" / "fault-0").exists(), "nobody was struck"
    assert history.sha256 == undisturbed[algorithm]
    # On a busy machine a survivor may be silent for as long as whoever was struck, and be replaced as well.
    found = {(event["event"], event["round"]) for event in losses(RunFolder(tmp_path / "run").events())}
    assert found == {("rank lost" if backend == "torchrun" else "actor lost", STRUCK)}
    assert [line["round"] for line in RunFolder(tmp_path / "run").ledger()] == list(range(1, ROUNDS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("backend", PLACES)
@pytest.mark.parametrize("point", ["between", "checkpoint"])
def test_a_coordinator_that_is_killed(backend, algorithm, point, tmp_path, undisturbed, request) -> None:
    assert strike(backend, algorithm, "kill", point, tmp_path).wait(120) == -signal.SIGKILL
    before = len(RunFolder(tmp_path / "run").ledger())
    assert STRUCK - 1 <= before < ROUNDS
    if backend == "ray":
        request.getfixturevalue("ray_cluster")
    assert run(backend, algorithm, tmp_path).sha256 == undisturbed[algorithm]
    assert [line["round"] for line in RunFolder(tmp_path / "run").ledger()] == list(range(1, ROUNDS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("point", ["train", "reduce"])
def test_the_one_process_is_killed_at_work(algorithm, point, tmp_path, undisturbed) -> None:
    assert strike("inprocess", algorithm, "kill", point, tmp_path).wait(60) == -signal.SIGKILL
    assert run("inprocess", algorithm, tmp_path).sha256 == undisturbed[algorithm]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_one_process_is_frozen_and_goes_on(algorithm, tmp_path, undisturbed) -> None:
    process = strike("inprocess", algorithm, "freeze", "train", tmp_path)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert run("inprocess", algorithm, tmp_path).sha256 == undisturbed[algorithm]


