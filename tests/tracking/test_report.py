"""Reports: the right numbers in the table, and a picture that is one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedlearn.tracking.report import curves, table

A = [{"round": 0, "test_accuracy": 0.1, "test_loss": 2.3},
     {"round": 1, "train_loss": 1.0, "test_accuracy": 0.9, "test_loss": 0.5,
      "bytes_up": 1e6, "bytes_down": 2e6, "seconds": {"work": 1.0, "update": 0.5, "evaluate": 0.25}},
     {"round": 2, "train_loss": 0.5, "bytes_up": 1e6, "bytes_down": 2e6, "seconds": {"work": 1.0}}]
B = [{"round": 0, "test_accuracy": 0.1, "test_loss": 2.3},
     {"round": 1, "train_loss": math.nan, "test_accuracy": 0.2, "test_loss": math.inf, "bytes_up": 2e6}]


def test_the_table_has_the_numbers() -> None:
    head, _, a, b = table([("FedAvg", A), ("bad [run]", B)], colour=False).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, a, b)]
    assert cells[0] == ["run", "rounds", "accuracy", "best", "test loss", "train loss", "up", "down",
                        "seconds", "evaluation"]
    assert cells[1] == ["FedAvg", "2", "90.0%", "90.0%", "0.5", "0.5", "2.0 MB", "4.0 MB", "2.5", "0.2"]
    assert cells[2] == ["bad [run]", "1", "20.0%", "20.0%", "inf", "nan", "2.0 MB", "-", "-", "-"]


def test_the_table_tells_samples_and_evaluation_aside() -> None:
    sampled = [{"round": 0, "test_accuracy": 0.1, "test_samples": 50, "seconds": {"evaluate": 0.5}},
               {"round": 1, "test_accuracy": 0.9, "test_samples": 50,
                "seconds": {"work": 1.0, "evaluate": 0.25, "aside": 2.0}},
               {"round": 2, "test_accuracy": 0.7, "test_samples": 1000, "seconds": {"work": 1.0, "evaluate": 3.0}}]
    for run, expected in ((sampled, ["run", "2", "70.0%", "70.0%", "1000", "2.0", "3.8", "2.0"]),
                          (sampled[:2], ["run", "1", "90.0%", "90.0%", "50", "1.0", "0.8", "2.0"])):
        head, _, row = table([("run", run)], colour=False).splitlines()
        assert [cell.strip() for cell in head.strip("|").split("|")] == [
            "run", "rounds", "accuracy", "best", "tested on", "seconds", "evaluation", "aside"]
        assert [cell.strip() for cell in row.strip("|").split("|")] == expected


def test_on_a_terminal_the_best_stands_out() -> None:
    a, b = table([("a", A), ("b", B)], colour=True).splitlines()[-2:]
    assert "\x1b[1;32m90.0%\x1b[0m" in a
    assert "\x1b[1;32m20.0%" not in b and "20.0%" in b
    assert "\x1b" not in table([("a", A), ("b", B)], colour=False)
    assert "\x1b" not in table([("a", A), ("b", B)])  # standard output is captured: not a terminal


@pytest.mark.parametrize("runs", [
    [("FedAvg", A), ("b", B)],
    [("synthetic", [{"round": r, "train_loss": 10.0**-r} for r in range(5)]), ("empty", [])],
    [(f"run {i}", A) for i in range(9)],
    [],
])
def test_curves_make_a_png(tmp_path: Path, runs: list) -> None:
    path = tmp_path / "plots" / "curves.png"
    curves(runs, path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20]) > 500 and int.from_bytes(data[20:24]) > 500
