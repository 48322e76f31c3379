"""The same command again: a launcher's restart goes on with the run, whoever was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedlearn import cli
from fedlearn.running.launched import Launch, launch_of, launcher
from fedlearn.tracking.run_folder import RunFolder

RUN = ["run", "algorithm=scaffold", "clients=6", "cohort=4", "local.steps=2", "evaluate.every=0", "progress=none"]
ELASTIC = ("TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, outside of torchrun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ELASTIC:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(capsys: Any, *overrides: str, code: int = 0) -> str:
    """Run and return the hash of the model."""
    assert cli.main([*RUN, *overrides]) == code
    return capsys.readouterr().out.split("sha256 ")[1].split()[0]


def folders(there: Path) -> list[Path]:
    return sorted(there.glob("runs/*/2*"))


def cut_short(there: Path, rounds: int) -> None:
    """Leave of the newest run what a process that was killed after so many rounds would have left."""
    folder = folders(there)[-1]
    (folder / "model.json").unlink()
    for path in folder.glob("checkpoints/round-*"):
        if int(path.name[6:14]) > rounds:
            path.rename(folder / f"gone-{path.name}")


def test_a_word_goes_on_with_the_run_that_it_began(there, capsys):
    whole = run(capsys, "rounds=6", "runs=whole")
    run(capsys, "rounds=6", "launch=job-7", "checkpoint.every=2")
    cut_short(there, 4)
    header = (folders(there)[0] / "config.yaml").read_text()
    assert run(capsys, "rounds=6", "launch=job-7", "checkpoint.every=2") == whole
    (folder,) = folders(there)
    assert [event["event"] for event in RunFolder(folder).events()] == ["resumed"]
    assert RunFolder(folder).events()[0]["round"] == 4
    assert (folder / "config.yaml").read_text() == header
    assert run(capsys, "rounds=6", "launch=job-7") == whole, "a finished run is shown again"
    assert len(folders(there)) == 1
    run(capsys, "rounds=6", "launch=job-8")
    run(capsys, "rounds=6")
    run(capsys, "rounds=6", "launch=job-7", "name=other")
    assert len(folders(there)) == 4, "another word, no word and another name begin runs of their own"


def test_a_word_of_another_configuration_is_refused(there, capsys):
    run(capsys, "rounds=2", "launch=job")
    assert cli.main([*RUN, "rounds=2", "launch=job", "seed=1"]) == 2
    assert "error: seed: found '1'; allowed: 0, as in the run runs/scaffold-digits/" in capsys.readouterr().err
    assert cli.main([*RUN, "launch=a/b"]) == 2
    assert "error: launch: found 'a/b'" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew_in_its_folder(there, capsys):
    whole = run(capsys, "rounds=3", "launch=job")
    cut_short(there, 0)
    assert run(capsys, "rounds=3", "launch=job") == whole
    (folder,) = folders(there)
    assert [line["round"] for line in RunFolder(folder).metrics()] == [0, 1, 2, 3]
    (folder / "config.yaml").unlink()       # it was killed earlier still
    (folder / "model.json").unlink()
    assert run(capsys, "rounds=3", "launch=job") == whole and (folder / "config.yaml").exists()


def test_torchrun_names_a_launch_where_it_may_restart(monkeypatch):
    assert launch_of(None, "a: 1") is None
    assert launch_of("word", "a: 1") == Launch("word", given=True)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "id")
    assert launch_of(None, "a: 1") is None
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    first = launch_of(None, "a: 1")
    assert first.word.startswith("torchrun id ") and not first.given and not first.restarted
    assert launch_of(None, "a: 2").word != first.word
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launch_of(None, "a: 1").word == first.word and launch_of(None, "a: 1").restarted
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launcher() in launch_of(None, "a: 1").word and str(os.getppid()) in launcher()


def test_a_launcher_s_own_word_names_a_finished_run_only_after_a_restart(there):
    folder = RunFolder.create(there / "runs", "a")
    Launch("torchrun x", given=False).mark(folder)

    def found(**more: bool) -> bool:
        return Launch("torchrun x", **{"given": False, **more}).find(there / "runs", "a") == folder

    assert found() and Launch("torchrun y", given=False).find(there / "runs", "a") is None
    (folder.path / "model.json").touch()
    assert not found() and found(restarted=True) and found(given=True)


def ranks(pid: int) -> dict[int, int]:
    """Return rank -> pid of the processes that an agent started (Linux)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parts = (entry / "environ").read_bytes().split(b"\0")
            environ = dict(part.split(b"=", 1) for part in parts if b"=" in part)
        except (OSError, ValueError):
            continue
        if parent == pid and b"RANK" in environ:
            found[int(environ[b"RANK"])] = int(entry.name)
    return found


@pytest.mark.slow
@pytest.mark.torchrun
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_restarts_the_run_after_a_kill(there, capsys, victim):
    more = ["rounds=300", "checkpoint.every=5", "stop.grace=2"]
    whole = run(capsys, *more, "runs=whole")
    agent = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3",
                              f"--log-dir={there}", "--nproc-per-node=2", "-m", "fedlearn", *RUN, *more,
                              "backend=torchrun", "backend.timeout=20"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    try:
        deadline = time.monotonic() + 120
        while not list(there.glob("runs/*/2*/checkpoints/round-0000001*")):
            assert agent.poll() is None and time.monotonic() < deadline, agent.communicate()
            time.sleep(0.01)
        os.kill(ranks(agent.pid)[victim], signal.SIGKILL)
        out, err = agent.communicate(timeout=150)
    finally:
        if agent.poll() is None:
            agent.terminate()   # it takes its ranks with it
        agent.wait(60)
    assert agent.returncode == 0, err
    assert f"sha256 {whole}" in out
    (folder,) = folders(there)
    assert [line["round"] for line in RunFolder(folder).metrics()] == list(range(301))
    resumed = [event for event in RunFolder(folder).events() if event["event"] == "resumed"]
    assert resumed and 10 <= resumed[0]["round"] < 300, "killed too late for this test to say anything"
