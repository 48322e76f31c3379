"""The wandb sink, against the real wandb offline, and without wandb."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tracking.wandb_file import history

from fedlearn.errors import ConfigError
from fedlearn.tracking.run_folder import RunFolder
from fedlearn.tracking.wandb_sink import Wandb

wandb = pytest.importorskip("wandb")
MARK = "FEDLEARN_TEST_SESSION"     # by which the session finds what it started


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Stop wandb's own process at the end, and keep its files below the test's folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-files"))
    yield
    wandb.teardown()


def test_an_offline_run_is_recorded(tmp_path: Path, service: None) -> None:
    folder = tmp_path / "digits" / "20260101-000000-aaaaaa"
    tracker = Wandb(project="p", mode="offline", group="g").tracker()
    tracker.started(folder, {"seed": 3, "algorithm": {"lr": 0.1}})
    run = tracker.run
    assert (run.id, run.name, run.project, run.group) == (folder.name, f"digits/{folder.name}", "p", "g")
    assert run.config["algorithm"] == {"lr": 0.1}
    tracker.round({"round": 1, "train_loss": 0.5, "seconds": {"work": 0.1}})
    tracker.round({"round": 2, "train_loss": 0.25, "seconds": {"work": 0.1}})
    tracker.finished({"sha256": "abc"})
    tracker.finished({})
    wandb.teardown()  # its own process has written all
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert [(line["_step"], line["train_loss"], line["seconds/work"]) for line in history(file)] == [
        (1, 0.5, 0.1), (2, 0.25, 0.1)]
    assert b"sha256" in file.read_bytes() and b"abc" in file.read_bytes()


def test_a_run_that_goes_on_has_every_round_once(tmp_path: Path, service: None) -> None:
    folder = RunFolder(tmp_path / "20260101-000000-aaaaaa")
    first, second = Wandb().tracker(), Wandb().tracker()
    first.started(folder.path, {})
    for r in range(4):
        line = {"round": r, "loss": float(r)}
        folder.append_metrics(line)
        first.round(line)
        if r:
            folder.append_ledger({"round": r, "time": f"2026-01-01T00:00:0{r}+00:00"})
    folder.truncate(2)      # the last checkpoint; the first tracker never hears of an end
    second.started(folder.path, {})
    assert second.run is not first.run
    for r in range(3, 5):
        second.round({"round": r, "loss": 10.0 * r})
    second.finished({})
    wandb.teardown()
    (file,) = folder.path.glob("wandb/offline-run-*/run-*.wandb")
    lines = history(file)
    assert [(line["_step"], line["round"], line["loss"]) for line in lines] == [
        (0, 0, 0.0), (1, 1, 1.0), (2, 2, 2.0), (3, 3, 30.0), (4, 4, 40.0)]
    began = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert [line["_timestamp"] - began for line in lines[:3]] == [1, 1, 2] and lines[3]["_timestamp"] > began + 3


def test_folders_of_one_name_are_different_runs_that_keep_their_ids(tmp_path: Path, service: None) -> None:
    def ran_in(folder: Path) -> str:
        tracker = Wandb().tracker()
        tracker.started(folder, {})
        tracker.finished({})
        wandb.teardown()
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        return file.stem.removeprefix("run-")

    ids = [ran_in(tmp_path / name / "a: b?") for name in "xyx"]
    assert ids[0] == ids[2] != ids[1] and all(id.startswith("a--b--") for id in ids)


SMALL = """
import logging, os, signal, sys, time
from pathlib import Path
from fedlearn.tracking.wandb_sink import Wandb
from processes import children

logging.basicConfig(format="%(message)s")
tracker = Wandb().tracker()
tracker.started(Path("run"), {})
tracker.round({"round": 0, "loss": 1.5})
if "kill" in sys.argv:
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    while tracker.run is not None:
        tracker.round({"round": 1})
        time.sleep(0.01)
    tracker.round({"round": 2})
tracker.finished({})
"""


def small(there: Path, *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it without a home that could be written to, and without a name."""
    environ |= {"PATH": os.environ["PATH"], "HOME": "/proc/none", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "TMPDIR": str(there), MARK: os.environ[MARK]}
    return subprocess.run([sys.executable, "-c", SMALL, *more], cwd=there, env=environ, capture_output=True, text=True,
                          timeout=60)


def test_without_a_home_or_a_name_it_says_nothing_and_calls_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        done = small(tmp_path, WANDB_BASE_URL=f"http://127.0.0.1:{server.getsockname()[1]}", WANDB_API_KEY=40 * "a")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        with pytest.raises(BlockingIOError):
            server.accept()
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    assert [line["loss"] for line in history(file)] == [1.5]


def test_should_wandb_die_the_rounds_go_on(tmp_path: Path) -> None:
    done = small(tmp_path, "kill")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("wandb is lost from round 1 on (") and "metrics.jsonl has it all" in done.stderr
    assert done.stderr.count("wandb is lost") == 1


def test_a_disabled_run_writes_nothing(tmp_path: Path, service: None) -> None:
    tracker = Wandb(mode="disabled").tracker()
    tracker.started(tmp_path / "run", {})
    tracker.round({"round": 1, "loss": 1.0})
    tracker.finished({})
    assert list((tmp_path / "run").iterdir()) == []


def test_without_wandb_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"tracking.wandb: .*pip install 'fedlearn\[wandb\]'"):
        Wandb().tracker().started(tmp_path, {})


@pytest.mark.parametrize("wrong", [{"mode": "ofline"}, {"project": ""}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}: found"):
        Wandb(**wrong)
