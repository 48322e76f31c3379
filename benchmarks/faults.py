"""What safety costs, and how long recovery takes: ``python -m benchmarks.faults`` writes docs/results/faults.md.

*Checkpoints*: the same run with a checkpoint after every round and with none, in turns: pieces of a few rounds of
each, the first round of a piece not counted. The time of a round is that from one line of the metrics to the next, so
that writing, syncing and renaming are in it. On a machine whose rounds vary by tens of percent the ratio of those says
little about a few milliseconds: so the time in which a checkpoint is made and written is measured by itself, too, and
its share of a round is what the bar is held against: 5% for McMahan's CNN on Fashion-MNIST, 100 clients, 10 a round, on
two torchrun ranks.

*Recovery*: a worker is killed while it trains, and the coordinator between two rounds. For a worker it is how much
longer the struck round took than the run's median round; for the coordinator how long after its death ``fedlearn
resume`` had committed the next round, the start of Python and the loading of the data included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import count, pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.speed.report import markdown
from benchmarks.speed.summary import ratio
from fedlearn.config.assemble import assemble, parts
from fedlearn.config.compose import compose
from fedlearn.running.execute import execute
from fedlearn.running.keeping import Keeping
from fedlearn.running.perform import perform
from fedlearn.tracking.run_folder import RunFolder

OUT = Path(__file__).parents[1] / "docs" / "results" / "faults.md"
QUIET = ["progress=none", "evaluate.every=0"]
TORCHRUN = ["backend=torchrun", "backend.workers=2"]
CNN = ["task=fashion_mnist", "heterogeneity=dirichlet", "heterogeneity.alpha=0.3", "clients=100", "cohort=10",
       "algorithm.lr=0.1"]
CHECKPOINTED = {"FedAvg, CNN on Fashion-MNIST": ["algorithm=fedavg", *CNN, *TORCHRUN],
                "SCAFFOLD, CNN on Fashion-MNIST": ["algorithm=scaffold", *CNN, *TORCHRUN],
                "FedAvg, MLP on digits": ["algorithm=fedavg", "task=digits", "clients=20", "cohort=10", *TORCHRUN]}
BAR = ("FedAvg, CNN on Fashion-MNIST", 0.05)
DIGITS = ["algorithm=scaffold", "task=digits", "clients=20", "cohort=10", "local.epochs=2", "rounds=12", *QUIET]
STRUCK = 6
BACKENDS = {"torchrun": TORCHRUN, "ray": ["backend=ray", "backend.workers=2"]}


class Clock:
    """A tracker that notes when each round's line was told."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Begin anew."""

    def round(self, metrics: Mapping[str, Any]) -> None:
        """Note the time."""
        self.told.append(time.perf_counter())

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Nothing more comes."""


def piece(overrides: Sequence[str], every: int, rounds: int, runs: Path, saving: list[float]) -> list[float]:
    """Return the seconds of the rounds of a short run but its first and last (which always writes a checkpoint).

    The seconds that its checkpoints took, but for those of its first and last round, are added to ``saving``.
    """
    took: list[float] = []
    save = Keeping.save

    def timed(*args: Any, **more: Any) -> None:
        began = time.perf_counter()
        save(*args, **more)
        took.append(time.perf_counter() - began)

    cfg = compose([*overrides, *QUIET, f"rounds={rounds}", f"checkpoint.every={every}", f"runs={runs}"])
    clock, folder = Clock(), RunFolder.create(runs, "piece")
    with patch.object(Keeping, "save", timed):
        execute(assemble(parts(cfg)), folder, [clock])
    saving += took[1:-1]
    return [b - a for a, b in pairwise(clock.told)][1:-1]


def checkpoint_cost(overrides: Sequence[str], pieces: int, rounds: int, runs: Path) -> tuple[Any, float, list[float]]:
    """Return (ratio, low, high) of the medians with a checkpoint every round over none, the plain median, and savings.

    The last are the seconds that checkpoints took.
    """
    saving: list[float] = []
    times: dict[int, dict[int, float]] = {0: {}, 1: {}}
    for i in range(pieces):
        for every in (0, 1) if i % 2 else (1, 0):
            seconds = piece(overrides, every, rounds, runs, saving)
            times[every] |= {i * rounds + k: s for k, s in enumerate(seconds)}
    return ratio(times[1], times[0]), median(times[0].values()), saving


def struck_worker(backend: str, folder: Path, runs: Path) -> tuple[float, float]:
    """Return how much longer a round with a killed worker took, and the median of the others."""
    folder.mkdir()
    fault = f"faults={{folder:{folder},schedule:[{{kind:kill,point:train,round:{STRUCK}}}]}}"
    _, history = perform(compose([*DIGITS, *BACKENDS[backend], f"runs={runs}", fault]))
    assert (folder / "fault-0").exists(), "the fault did not fire"
    seconds = {line["round"]: line["seconds"]["work"] for line in history.metrics if line["round"]}
    usual = median(s for r, s in seconds.items() if r != STRUCK + 1)
    return seconds[STRUCK + 1] - usual, usual


def struck_coordinator(backend: str, folder: Path, runs: Path) -> float:
    """Return the seconds from the death of a coordinator to the next round that a resumed run committed."""
    folder.mkdir()
    fault = f"faults={{folder:{folder},schedule:[{{kind:kill,point:between,round:{STRUCK}}}]}}"
    python = [sys.executable, "-m", "fedlearn"]
    died = subprocess.run([*python, "run", *DIGITS, *BACKENDS[backend], f"runs={runs}", "checkpoint.every=1", fault],
                          capture_output=True, check=False)
    assert died.returncode == -9, died.stderr.decode()[-500:]
    began = float((folder / "fault-0").read_text().split()[0])
    process = subprocess.Popen([*python, "resume", "latest", "--runs", str(runs)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    run = RunFolder.open("latest", runs)
    while run.metrics()[-1]["round"] <= STRUCK and process.poll() is None:
        time.sleep(0.005)
    took = time.time() - began
    assert process.wait() == 0
    return took


def checkpoints(pieces: int, rounds: int, scratch: Path) -> tuple[list[str], bool]:
    """Measure what checkpoints cost; return the table's lines, and whether the bar is kept."""
    cells, kept = [], True
    for name, overrides in CHECKPOINTED.items():
        (mid, low, high), usual, saving = checkpoint_cost(overrides, pieces, rounds, scratch / "runs")
        share = median(saving) / usual
        cells.append([name, f"{1000 * usual:.1f} ms", f"{1000 * median(saving):.1f} ms", f"{share:.1%}",
                      f"{mid:.3f} [{low:.3f}, {high:.3f}]"])
        print(*cells[-1], sep="   ", flush=True)
        kept = kept and (name != BAR[0] or share <= BAR[1])
    titles = ["run", "a round without", "a checkpoint", "share", "ratio of rounds [95 % interval]"]
    verdict = f"Bar: a share of at most {BAR[1]:.0%} for {BAR[0]}: {'kept' if kept else 'NOT KEPT'}."
    return ["## A checkpoint after every round, against none", "", *markdown(titles, cells), "", verdict, ""], kept


def recovery(repeats: int, scratch: Path) -> list[str]:
    """Measure how long recovery takes; return the table's lines."""
    cells, numbers, runs = [], count(), scratch / "runs"
    for backend in BACKENDS:
        pairs = [struck_worker(backend, scratch / f"faults{next(numbers)}", runs) for _ in range(repeats)]
        cells.append([f"worker killed while training, {backend}", *_spread([extra for extra, _ in pairs]),
                      f"{1000 * median(usual for _, usual in pairs):.0f} ms"])
        print(*cells[-1], sep="   ", flush=True)
        took = [struck_coordinator(backend, scratch / f"faults{next(numbers)}", runs) for _ in range(repeats)]
        cells.append([f"coordinator killed between rounds, resumed, {backend}", *_spread(took), ""])
        print(*cells[-1], sep="   ", flush=True)
    return ["## Recovery", "", *markdown(["death", "median", "least", "most", "an undisturbed round"], cells)]


def main() -> int:
    """Measure, print and write the tables; 0 if the bar is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=6, help="pieces of each kind (6)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a piece (5)")
    parser.add_argument("--repeats", type=int, default=5, help="deaths of each kind (5)")
    parser.add_argument("--only", choices=["checkpoints", "recovery"], help="one of the two tables")
    parser.add_argument("--out", type=Path, default=OUT, help="where the tables go (docs/results/faults.md)")
    args = parser.parse_args()
    lines = ["# What safety costs, and how long recovery takes", "",
             f"Measured {datetime.now():%Y-%m-%d} by `python -m benchmarks.faults`; benchmarks/faults.py says how.", ""]
    kept = True
    with tempfile.TemporaryDirectory() as scratch:
        if args.only != "recovery":
            table, kept = checkpoints(args.pieces, args.rounds, Path(scratch))
            lines += table
        if args.only != "checkpoints":
            lines += recovery(args.repeats, Path(scratch))
    args.out.write_text("\n".join(lines) + "\n")
    print(args.out)
    return 0 if kept else 1


def _spread(seconds: Sequence[float]) -> list[str]:
    return [f"{s:.2f} s" for s in (median(seconds), min(seconds), max(seconds))]


if __name__ == "__main__":
    raise SystemExit(main())
