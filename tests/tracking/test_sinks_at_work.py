"""wandb and TensorBoard together, from ranks and actors: one of each, from the coordinator, every round once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracking.wandb_file import history

from fedlearn import cli
from fedlearn.tracking.run_folder import RunFolder

pytest.importorskip("wandb")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

RUN = ["run", "clients=4", "cohort=2", "local.steps=2", "rounds=6", "progress=none", "checkpoint.every=2"]
BOTH = ["tracking=[wandb,tensorboard]"]


def check(there: Path, resumed: list[int]) -> None:
    """Check what the only run below a folder left."""
    (folder,) = there.glob("runs/*/2*")
    lines = RunFolder(folder).metrics()
    assert [line["round"] for line in lines] == list(range(7))
    assert [event["round"] for event in RunFolder(folder).events() if event["event"] == "resumed"] == resumed
    (file,) = there.rglob("*.wandb")
    assert file.parent.parent == folder / "wandb" and file.stem == f"run-{folder.name}"
    logged = history(file)
    assert [line["_step"] for line in logged] == [line["round"] for line in logged] == list(range(7))
    assert [line.get("train_loss") for line in logged] == [line.get("train_loss") for line in lines]
    assert [line["seconds/evaluate"] for line in logged] == [line["seconds"]["evaluate"] for line in lines]
    (events,) = there.rglob("*tfevents*")
    assert events.parent == folder / "tensorboard"
    seen = accumulator.EventAccumulator(str(events)).Reload()
    assert [(event.step, event.value) for event in seen.Scalars("train_loss")] == [
        (line["round"], pytest.approx(line["train_loss"])) for line in lines[1:]]


def fedlearn(there: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call it as a container does: nothing of the user's can be read or written."""
    environ = {**os.environ, "HOME": "/proc/none", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        environ.pop(name, None)
    return subprocess.run([sys.executable, *arguments], cwd=there, env=environ, capture_output=True, text=True,
                          timeout=120)


@pytest.mark.slow
@pytest.mark.torchrun
def test_rank_0_of_two_is_killed_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    faults = f"faults={{folder: {tmp_path / 'marks'}, schedule: [{{kind: kill, point: between, round: 3}}]}}"
    done = fedlearn(tmp_path, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1", "--nproc-per-node=2",
                    f"--log-dir={tmp_path}", "-m", "fedlearn", *RUN, *BOTH, "backend=torchrun", faults)
    assert done.returncode == 0, done.stderr
    check(tmp_path, resumed=[2])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_driver_of_ray_actors_tells(empty_folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("HOME", "/proc/none")
    assert cli.main([*RUN, *BOTH, "backend=ray", "backend.workers=2"]) == 0, capsys.readouterr().err
    wandb.teardown()
    check(empty_folder, resumed=[])


def test_a_run_that_is_over_can_still_be_told(empty_folder: Path, capsys: Any) -> None:
    import wandb

    assert cli.main(RUN) == 0
    assert cli.main(["resume", "latest", "progress=none", *BOTH]) == 0, capsys.readouterr().err
    wandb.teardown()
    check(empty_folder, resumed=[6])
