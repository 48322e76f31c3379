"""Signals to real runs on every backend: the exit code, nobody left behind, and resume ends in the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedlearn import cli
from fedlearn.tracking.run_folder import RunFolder

CTRL_C, TERM = signal.SIGINT, signal.SIGTERM
GIVEN_UP = 120      # seconds within which it must be over, on a busy machine, too
MODULE = """
import os, time
from torch import nn

class Slow(nn.Sequential):
    '''A model that takes its time while a file says so.'''
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, x):
        if os.path.exists("slow"):
            time.sleep(0.1)
        return super().forward(x)
"""
RUN = ["run", "model={_target_:mine.Slow}", "algorithm=scaffold", "clients=6", "cohort=4", "rounds=30",
       "evaluate.every=0", "checkpoint.every=10", "stop.grace=1"]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a slow model, outside of torchrun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


KNOWN: dict[str, str] = {}


def whole_hash(capsys: Any) -> str:
    """Return the hash of the undisturbed run, which is worked out once."""
    if not KNOWN:
        assert cli.main([*RUN, "progress=none", "runs=whole"]) == 0
        KNOWN["sha256"] = capsys.readouterr().out.split("sha256 ")[1].split()[0]
    return KNOWN["sha256"]


@contextmanager
def running(there: Path, *more: str):
    """Run slowly from round 5 on, in another process; hand over (process, run folder) in the middle of a round."""
    process = subprocess.Popen([sys.executable, "-m", "fedlearn", *RUN, *more], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    try:
        folder = awaited(process, lambda: next(iter(there.glob("runs/*/2*")), None))
        awaited(process, lambda: len(RunFolder(folder).metrics()) > 5 if folder else False)
        (there / "slow").touch()
        time.sleep(0.5)
        yield process, RunFolder(folder)
    finally:
        (there / "slow").unlink(missing_ok=True)
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def awaited(process: subprocess.Popen, found: Any) -> Any:
    """Return what is found as soon as it is there."""
    deadline = time.monotonic() + GIVEN_UP
    while not (value := found()):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)
    return value


def family(pid: int) -> set[int]:
    """Return the processes that descend from one (Linux)."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def gone(pids: set[int]) -> bool:
    """Return whether processes end within a few seconds; who waits to be reaped has ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = set()
        for pid in pids:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z":
                left.add(pid)
        if not left:
            return True
        time.sleep(0.05)
    return False


BACKENDS = ["inprocess", pytest.param("torchrun", marks=pytest.mark.torchrun),
            pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_sigterm_in_the_middle_of_a_slow_round(there, capsys, backend):
    whole = whole_hash(capsys)
    with running(there, f"backend={backend}", "progress=plain") as (process, folder):
        others = family(process.pid)
        assert bool(others) == (backend != "inprocess")
        process.send_signal(TERM)
        out, err = process.communicate(timeout=GIVEN_UP)
        assert process.returncode == 75, err
        done = folder.events()[-1]["round"]
        assert "SIGTERM: finishing round" in err and f"`fedlearn resume {folder.path}".replace(f"{there}/", "") in err
        assert f"stopped by SIGTERM after {done} of 30 rounds" in err.splitlines()[-1]
        assert f"| scaffold-digits | {done:>6} |" in out, "the table is there as after a run"
    assert gone(others)
    assert folder.checkpoints.joinpath(f"round-{done:08d}").is_dir()
    assert [line["round"] for line in folder.metrics()] == list(range(done + 1))
    assert cli.main(["resume", str(folder.path), "--trust", "progress=none", "backend=inprocess"]) == 0
    assert whole in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_and_nobody_is_left(there, capsys, backend):
    whole = whole_hash(capsys)
    with running(there, f"backend={backend}", "progress=none") as (process, folder):
        others = family(process.pid)
        process.send_signal(CTRL_C)
        awaited(process, lambda: "finishing round" in os.read(process.stderr.fileno(), 4096).decode())
        process.send_signal(CTRL_C)
        _, err = process.communicate(timeout=GIVEN_UP)
        assert process.returncode == 130 and "fedlearn resume" in err.splitlines()[-1], err
        assert "Traceback" not in err
    assert gone(others)
    assert cli.main(["resume", str(folder.path), "--trust", "progress=none", "backend=inprocess"]) == 0
    assert whole in capsys.readouterr().out
