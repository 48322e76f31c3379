"""How ranks end: with their coordinator, never by a signal to everybody, and under torchrun all together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from problems import begin, blobs, experiment, losses, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.vectors import digest

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]
ROOT = Path(__file__).parents[2]
RESULT = digest(play(experiment(Scaffold(), 3, task=blobs(), cohort=5))[0])


def environ(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "TMPDIR": str(tmp_path)}


def await_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while left := [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()
                   and Path(f"/proc/{pid}/cmdline").read_bytes()]:
        assert time.monotonic() < deadline, f"{left} outlived their coordinator"
        time.sleep(0.05)


def test_signals_to_everybody_are_the_coordinators_to_heed() -> None:
    loop, workers = begin(experiment(Scaffold(), 3, task=blobs(), cohort=5, backend=Torchrun(workers=3)))
    before = [child.process.pid for child in workers.children]
    for r in range(3):
        for child in workers.children:
            child.process.send_signal(signal.SIGTERM)
            child.process.send_signal(signal.SIGINT)
        loop.round(r)
    assert before == [child.process.pid for child in workers.children] and losses(workers.events()) == []
    workers.close()
    assert digest(loop.model()) == RESULT


HANGS = """
import sys
from pathlib import Path
from problems import begin, blobs, experiment
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.faults import Fault, Faults, lead
faults = Faults((Fault("hang", "train", 1, seconds=600, anywhere=True),), Path(sys.argv[1]))
e = experiment(FedAvg(), task=blobs(), cohort=1, backend=Torchrun(workers=2, hang=1.5), faults=faults)
loop, workers = begin(e)
with lead(faults):
    loop.round(0)
    print(*[child.process.pid for child in workers.children], flush=True)
    loop.round(1)
"""


def test_a_coordinator_that_hangs_says_where_and_ends(tmp_path: Path) -> None:
    # With one client a round it is the coordinator's.
    run = subprocess.run([sys.executable, "-c", HANGS, str(tmp_path)], env=environ(tmp_path), text=True, timeout=100,
                         capture_output=True)
    assert run.returncode == 4
    assert len(run.stderr.splitlines()) == 1
    assert "error: the coordinator's own work took no step for 1.5 s on client " in run.stderr
    assert "in at (faults.py:" in run.stderr and "in round 1 (backend.hang)" in run.stderr
    await_end([int(pid) for pid in run.stdout.split()])
    assert list(tmp_path.glob("fedlearn-*")) == []


STOPPED = """
import os, signal, sys, threading, time
from pathlib import Path
from problems import begin, blobs, experiment
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.torchrun.backend import Torchrun
class Asked(Exception):
    pass
def ask(*_):
    raise Asked
signal.signal(signal.SIGUSR2, ask)
loop, workers = begin(experiment(FedAvg(), task=blobs(), backend=Torchrun(workers=3)))
loop.round(0)
start = workers.gang.start
def interrupted(seats):
    start(seats)
    print(*[child.process.pid for child in workers.children], flush=True)
    if sys.argv[1] == "killed":
        while not all(child.ready for child in workers.children):
            for child in workers.children:
                child.hear() if not child.ready else None
        workers.gang.unpacked()
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGUSR2)
workers.gang.start = interrupted
workers.children[0].process.kill()
try:
    loop.round(1)
except Asked:
    workers.close()
    print(len(workers.children), flush=True)
"""


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_coordinator_that_ends_while_ranks_are_replaced_leaves_nobody(how: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED, how], env=environ(tmp_path), stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    if how == "killed":
        deadline = time.monotonic() + 60
        while list(tmp_path.glob("fedlearn-*")):    # the newcomer has the setup, and is not in a group yet
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    rest, _ = process.communicate(timeout=60)
    assert rest.strip() == ("" if how == "killed" else "0")
    await_end(pids)
    assert list(tmp_path.glob("fedlearn-*")) == []


UNDER = """
import os, signal, sys, time
from pathlib import Path
from problems import blobs, experiment, setup_of
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.errors import FedlearnError
from fedlearn.faults import Fault, Faults, lead
from fedlearn.vectors import digest

out, case = Path(sys.argv[1]), sys.argv[2]
backend = Torchrun(timeout=float(sys.argv[3]))
rank = backend.rank()
kinds = {"killed": ("kill", "train"), "frozen": ("freeze", "train"), "altered": ("corrupt", "upload"),
         "signalled": ("slow", "train"), "gone": ("hang", "train")}
kind, point = kinds[case]
faults = Faults((Fault(kind, point, 1, seconds=600.0 if case == "gone" else 0.1),), out)
e = experiment(Scaffold(), rounds=3, cohort=5, backend=backend, task=blobs(), faults=faults)
(out / f"pid-{rank}").write_text(str(os.getpid()))
if rank == 0:
    signal.signal(signal.SIGTERM, lambda *_: None)  # of the launcher, as soon as another rank is dead
workers = None
try:
    workers = backend.open(setup_of(e))
    if rank == 0:
        loop = e.protocol.start(e, workers)
        with lead(faults):
            for r in range(3):
                if case == "signalled" and r:    # from then on all serve
                    for other in (1, 2):
                        for number in (signal.SIGTERM, signal.SIGINT):
                            os.kill(int((out / f"pid-{other}").read_text()), number)
                loop.round(r)
        workers.close({"x": loop.model()})
        said = digest(loop.model())
    else:
        said = digest(workers.serve()["x"])
except FedlearnError as error:
    said = f"{type(error).__name__} {error.code} {error}"
finally:
    if workers is not None:
        workers.close()
(out / str(rank)).write_text(f"{time.time()} {said}")
sys.exit(4 if "Error" in said else 0)
"""


def under_torchrun(tmp_path: Path, case: str, timeout: float = 60.0) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(UNDER)
    out = tmp_path / "out"
    out.mkdir()
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
                             str(script), str(out), case, str(timeout)], env=environ(tmp_path), text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def said(tmp_path: Path) -> dict[int, str]:
    return {rank: path.read_text().partition(" ")[2] for rank in range(3)
            if (path := tmp_path / "out" / str(rank)).exists()}


@pytest.mark.parametrize("case", ["killed", "altered", pytest.param("frozen", marks=pytest.mark.slow)])
def test_under_torchrun_a_lost_rank_ends_the_run_at_every_rank(case: str, tmp_path: Path) -> None:
    agent = under_torchrun(tmp_path, case, 10.0 if case == "frozen" else 60.0)
    assert agent.wait(120) == 1
    what = {"killed": "a rank is gone", "frozen": "gave no sign of life for 10 s", "altered": "arrived altered"}[case]
    found = said(tmp_path)
    assert what in found[0] and found[0].startswith("WorkerError 4 ") and "in round 1; continue the run" in found[0]
    others = [words for rank, words in found.items() if rank]
    # One is dead or frozen; the launcher may be quicker than a rank that is still at work.
    assert all(words.startswith("WorkerError 4 rank ") and "lost its group" in words for words in others)
    fired = float((tmp_path / "out" / "fault-0").read_text().split()[0])
    ended = float((tmp_path / "out" / "0").read_text().split()[0])
    assert ended - fired < (30 if case == "frozen" else 15)
    assert list(tmp_path.glob("fedlearn-*")) == []
    await_end([int(path.read_text()) for path in (tmp_path / "out").glob("pid-*")])


def test_under_torchrun_signals_to_other_ranks_do_not_end_them(tmp_path: Path) -> None:
    assert under_torchrun(tmp_path, "signalled").wait(120) == 0
    assert said(tmp_path) == dict.fromkeys(range(3), RESULT)


def test_under_torchrun_ranks_at_work_end_when_rank_0_was_killed(tmp_path: Path) -> None:
    agent = under_torchrun(tmp_path, "gone")
    out = tmp_path / "out"
    deadline = time.monotonic() + 60
    while not (out / "fault-0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int((out / "pid-0").read_text()), signal.SIGKILL)
    began = time.monotonic()
    assert agent.wait(60) == 1
    assert time.monotonic() - began < 25    # before the launcher's own patience, 30 s, is over
    await_end([int(path.read_text()) for path in out.glob("pid-*")])


def test_what_is_said_of_settings() -> None:
    chosen: dict[str, Any] = {"hang": None, "replacements": 0}
    assert Torchrun(**chosen).hang is None
    loop, workers = begin(experiment(FedAvg(), backend=Torchrun(workers=2, **chosen)))
    assert workers.watchdog is None
    loop.round(0)
    workers.close()
