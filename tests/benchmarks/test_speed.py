"""The speed harness: its arithmetic, its line protocol, and one toy race from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed import bars, contestants, machine, report, studies, summary
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


HOARD = """
import mmap, sys, time
private = bytearray(30_000_000)
private[::4096] = b"x" * len(private[::4096])
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(mapped[::4096])
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc/PID/smaps_rollup (Linux)")
def test_memory_is_told_from_mapped_files(tmp_path: Path) -> None:
    """What is mapped from a file does not count as memory, and a child counts with its parent."""
    (tmp_path / "file").write_bytes(b"x" * 50_000_000)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOARD!r}, sys.argv[1]])"
    process = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path / "file")], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    memory, mapped = machine.memory_mb(process.pid)
    process.communicate("\n", timeout=20)
    assert 30 <= memory < 60 and 50 <= mapped < 80


def bar_rows(records: dict[str, list[dict]]) -> dict[str, list[str]]:
    """Return measured, bar and verdict by quantity."""
    return {what: rest for what, *rest in bars.cells(records)}


def test_bars_compare_the_fastest_placement_with_the_fastest_peer() -> None:
    """Peers and bare PyTorch are told apart, bf16 from float32, and other algorithms do not count for FedAvg."""
    times = {"bare PyTorch": 12.0, "fedlearn": 3.0, "fedlearn, torchrun 2": 2.0, "fedlearn, torchrun 2, scaffold": 1.0,
             "fedlearn, scaffold": 6.0, "pfl": 30.0, "pfl, torchrun 2": 19.0, "Flower, 2 actors": 100.0,
             "fedlearn, torchrun 2, precision=bf16": 0.5, "fedlearn, oracle=autograd": 12.0}
    records = [r for name, seconds in times.items() for r in rounds(name, *[seconds] * 3)]
    found = bar_rows({"W1L": records, "W2": records})
    assert found["W1L over the fastest peer"] == ["9.5x (fedlearn, torchrun 2; pfl, torchrun 2)", "at least 10x",
                                                  "**not reached**"]
    assert found["W1L over bare PyTorch, one thread"] == ["6x (fedlearn, torchrun 2)", "at least 6x", "reached"]
    assert found["W1L over Flower"][0].startswith("50x") and found["W1L over Flower"][2] == "reached"
    assert found["W1L scaffold, time against FedAvg"] == ["2x", "at most 1.5x", "**not reached**"]
    assert found["W1L scaffold, time against FedAvg, torchrun 2"] == ["0.5x", "at most 1.5x", "reached"]
    assert found["W2 over the fastest peer, bf16"][0].startswith("38x")
    assert found["W2 over bare PyTorch, one thread, bf16"][1:] == ["-", ""]
    assert found["W2 autograd oracle, time against bare PyTorch"] == ["1x", "at most 1.03x", "reached"]
    assert found["W1M over the fastest peer"] == ["not measured", "at least 4x", ""]
    assert found["W3 wall time against the fastest peer"] == ["not measured", "at most 0.6x", ""]


def test_bars_of_population_and_profile() -> None:
    """Time and memory against the smaller population; shares of the profiled rounds."""
    population = []
    for clients, seconds, memory in ((1_000, 1.0, 200.0), (1_000_000, 1.05, 401.0)):
        name = studies.of(clients)
        population += [*rounds(name, seconds), {"kind": "final", "name": name, "memory_mb": memory, "mapped_mb": 9.0}]
    shares = {"oracle": 0.91, "local algorithm": 0.05, "reduce": 0.035, "batches": 0.005}
    found = bar_rows({"population": population, "profile": [{"kind": "profile", "name": "W2", "shares": shares}]})
    assert found["1,000,000 clients against 1,000: round time"] == ["1.05x", "at most 1.1x", "reached"]
    assert found["1,000,000 clients against 1,000: memory"] == ["201 MB more", "at most 200 MB more", "**not reached**"]
    outside = found["W2 share of a round outside the oracle"]
    assert outside == ["9.0% (local algorithm 5.0%, reduce 3.5%, batches 0.5%)", "at most 5.0%", "**not reached**"]
    assert found["W2 share of a round of the framework"] == ["4.0%", "at most 5.0%", "reached"]
    assert found["W2 share of the exact reduction"] == ["3.5%", "at most 3.0%", "**not reached**"]


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
