"""Run folders: made, found again, and read back as written."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.tracking.run_folder import RunFolder


def test_every_run_has_its_own_folder_and_latest_follows(tmp_path: Path) -> None:
    runs = [RunFolder.create(tmp_path / "runs", "a") for _ in range(20)]
    assert len({run.path for run in runs}) == 20
    assert os.readlink(tmp_path / "runs" / "a" / "latest") == runs[-1].id
    assert len(list((tmp_path / "runs" / "a").iterdir())) == 21


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "/abs", "latest", ".hidden", "a b", "20261122-005601-a1b2c3"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="^name: found"):
        RunFolder.create(tmp_path, name)


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(ConfigError, match="^runs: found .*a folder"):
        RunFolder.create(tmp_path / "runs", "a")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, id in [("a", "20260101-000000-aaaaaa"), ("a", "20260101-000000-aabbbb"),
                     ("b", "20260202-000000-cccccc")]:
        run = RunFolder(tmp_path / name / id)
        run.write_config(f"name: {name}\n")
    (tmp_path / "a" / "latest").symlink_to("20260101-000000-aabbbb")
    return tmp_path


@pytest.mark.parametrize(("asked", "found"), [
    ("a/20260101-000000-aaaaaa", "aaaaaa"),
    ("a/20260101-000000-aab", "aabbbb"),
    ("20260101-000000-aaa", "aaaaaa"),
    ("2026020", "cccccc"),
    ("a", "aabbbb"),
    ("a/latest", "aabbbb"),
    ("b/latest", "cccccc"),
    ("latest", "cccccc"),
])
def test_a_run_is_found(root: Path, asked: str, found: str) -> None:
    assert RunFolder.open(asked, root).id.endswith(found)


def test_a_run_is_found_by_its_path(root: Path) -> None:
    for path in (root / "a" / "latest", root / "a" / "20260101-000000-aabbbb"):
        assert RunFolder.open(path, "elsewhere").id == "20260101-000000-aabbbb"
        assert RunFolder.open(str(path), "elsewhere").config_text() == "name: a\n"


@pytest.mark.parametrize(("asked", "listed"), [
    ("20260101", ["a/20260101-000000-aabbbb", "a/20260101-000000-aaaaaa"]),
    ("c", ["b/20260202-000000-cccccc, a/20260101-000000-a"]),
    ("b/2025", ["b/20260202-000000-cccccc"]),
    ("c/latest", ["b/20260202-000000-cccccc"]),
    ("", ["b/20260202-000000-cccccc"]),
    ("..", ["b/20260202-000000-cccccc"]),
])
def test_a_run_that_is_not_one_lists_the_candidates(root: Path, asked: str, listed: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        RunFolder.open(asked, root)
    said = str(error.value).replace(str(root), "ROOT")     # a temporary folder's random name may end in b
    for candidate in listed:
        assert candidate in said
    assert (" b/" in said) == listed[0].startswith("b/")
    assert "\n" not in said


def test_an_empty_root_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="but .* holds no run"):
        RunFolder.open("latest", tmp_path / "none")


def test_lines_come_back_and_are_strict_json(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.metrics() == run.ledger() == []
    line = {"round": 1, "train_loss": np.float32(0.5), "t": torch.tensor(2.0), "n": np.int64(3),
            "bad": [math.inf, -math.inf, np.float64("inf")], "seconds": {"work": 0.1}}
    run.append_metrics(line)
    run.append_metrics({"round": 2, "train_loss": math.nan})
    run.append_ledger({"round": 1, "cohort": [np.int64(4), 5], "sha256": "ab"})
    first, second = run.metrics()
    assert first == {**line, "train_loss": 0.5, "t": 2.0, "n": 3}
    assert math.isnan(second["train_loss"])
    assert run.ledger() == [{"round": 1, "cohort": [4, 5], "sha256": "ab"}]

    def refuse(token: str) -> None:
        raise AssertionError(token)

    for text in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_cut_last_line_does_not_count(tmp_path: Path, cut: int) -> None:
    run = RunFolder(tmp_path)
    run.append_ledger({"round": 1})
    run.append_ledger({"round": 2})
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert run.ledger() == [{"round": 1}]
    run.append_ledger({"round": 3})
    assert run.ledger() == [{"round": 1}, {"round": 3}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n\x00\x00\n{"round": 3}\n')
    with pytest.raises(FedlearnError, match="metrics.jsonl, line 2: found"):
        run.metrics()


def test_truncate_drops_later_rounds(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.truncate(0)
    for r in range(5):
        run.append_metrics({"round": r, "loss": math.nan})
        run.append_ledger({"round": r})
    run.truncate(2)
    assert [line["round"] for line in run.metrics()] == [0, 1, 2]
    assert [line["round"] for line in run.ledger()] == [0, 1, 2]
    assert math.isnan(run.metrics()[0]["loss"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.jsonl", "metrics.jsonl"]


def test_a_missing_config_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FedlearnError, match="config.yaml: No such file"):
        RunFolder(tmp_path).config_text()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = ("import sys; from fedlearn.tracking.run_folder import RunFolder; from pathlib import Path\n"
            "with RunFolder(Path(sys.argv[1])).claim(): pass")
    with RunFolder(tmp_path).claim():
        other = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert "another process is working on this run" in other.stderr
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == 0
