"""The speed harness: its arithmetic, its line protocol, and one toy race from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed import contestants, report, summary
from benchmarks.speed.race import Contestant, race
from benchmarks.speed.workloads import WORKLOADS, quick

ROOT = Path(__file__).parents[2]
STUB = """
import sys
from benchmarks.speed.pace import Pace
pace = Pace()
pace.ready("torch")
for r in range(3):
    print("what a framework prints")
    if r == {fails}:
        sys.exit("the third party said no")
    pace.lap()
pace.final(0.5)
"""


def rounds(name: str, *seconds: float) -> list[dict]:
    """Return the records of a contestant."""
    return [{"kind": "round", "name": name, "round": r, "seconds": s, "busy": 0.0, "noisy": r == 0}
            for r, s in enumerate(seconds)]


def test_rows_are_medians_and_ratios_to_the_reference() -> None:
    """Median, quartiles, ratio of medians and its interval, and how many rounds were noisy."""
    slow, fast = summary.rows(rounds("slow", 2, 4, 6, 8, 100) + rounds("fast", 1, 2, 3, 4, 5), "fast")
    assert (slow.median, slow.quartiles, slow.noisy, slow.rounds) == (6, (4, 8), 1, 5)
    assert slow.ratio and fast.ratio == (1, 1, 1)
    estimate, low, high = slow.ratio
    assert estimate == 2 and 1.9 < low <= 2 <= high
    assert summary.ratio({0: 1.0}, None) is None
    # Only rounds that both ran count.
    assert summary.ratio({0: 1.0, 1: 9.0}, {0: 0.5}) == (2, 2, 2)


def test_a_contestant_that_fails_is_left_out_with_its_last_words(tmp_path: Path) -> None:
    """The others go on, take turns, and what frameworks print does not reach the harness."""
    records: list[dict] = []
    runners = [Contestant(name, [sys.executable, "-c", STUB.replace("{fails}", str(fails))])
               for name, fails in (("good", 9), ("bad", 2))]
    runners.append(Contestant("absent", [], missing="not installed"))
    race(runners, tmp_path, 2, 1, tmp_path, records.append, patience=0)
    assert [(r["name"], r["reason"]) for r in records if r["kind"] == "skipped"] == [
        ("absent", "not installed"), ("bad", "it ended: the third party said no")]
    assert [(r["name"], r["round"]) for r in records if r["kind"] == "round"] == [("good", 1), ("bad", 1), ("good", 2)]
    assert [r["name"] for r in records if r["kind"] == "final"] == ["good"]


def test_peers_without_an_environment_say_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names the script."""
    monkeypatch.setattr(contestants, "PEERS", tmp_path)
    chosen = contestants.for_rounds(WORKLOADS["W2"], peers=True, everything=False)
    assert {c.missing for c in chosen if c.missing} == {
        f"no environment; benchmarks/peers/setup.sh {name} makes it" for name in ("pfl", "fedlab", "flwr")}
    for name in ("pfl", "fedlab", "flwr"):
        pins = (ROOT / "benchmarks/peers/requirements" / f"{name}.txt").read_text().splitlines()[1:]
        assert all("==" in pin for pin in pins) and "torch==2.13.0" in pins


def test_quick_is_the_same_kind_of_problem() -> None:
    """Toys need no data set but digits."""
    for workload in WORKLOADS.values():
        toy = quick(workload)
        assert (toy.task, toy.model[0], toy.whole) == ("digits", workload.model[0], workload.whole)


@pytest.mark.slow
def test_quick_race_from_end_to_end(tmp_path: Path) -> None:
    """``--quick`` writes the table, the picture and the raw lines; fedlearn ends where bare PyTorch does."""
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", "--patience", "0", "--out", str(tmp_path / "out"),
               "W1M", "--only", "bare PyTorch", "--only", "fedlearn"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200,
                          env=os.environ | {"FEDLEARN_BENCH": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "out" / "speed.jsonl").read_text().splitlines()]
    finals = {r["name"]: r for r in records if r["kind"] == "final"}
    assert set(finals) == {"bare PyTorch", "fedlearn"}
    assert finals["fedlearn"]["difference"] < 1e-5 and finals["bare PyTorch"]["difference"] == 0
    assert finals["fedlearn"]["accuracy"] == finals["bare PyTorch"]["accuracy"]
    text = (tmp_path / "out" / "speed.md").read_text()
    assert "| fedlearn " in text and "W1M" in text and text in done.stdout
    assert (tmp_path / "out" / "speed.png").stat().st_size > 1000
    assert report.write(tmp_path / "out") == text  # the report needs nothing but the raw lines
