"""The wandb sink, against the real wandb offline, and without wandb."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.errors import ConfigError
from fedlearn.tracking.wandb_sink import Wandb

wandb = pytest.importorskip("wandb")


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
    assert run.step == 2
    tracker.finished({"sha256": "abc"})
    tracker.finished({})
    wandb.teardown()  # its own process has written all
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    for part in (b"train_loss", b"seconds/work", b"0.25", b"sha256", b"abc"):
        assert part in data


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
