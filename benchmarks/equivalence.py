"""Placement does not change the result: ``make equivalence`` prints the table of final hashes.

For each task and algorithm the same run is made in process, on 1 to 4 torchrun ranks, on 1 to 3 Ray
actors, and in two halves on two different backends. All SHA-256 of a row must be one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from fedlearn.config.compose import compose, recompose
from fedlearn.running.perform import perform

ROUNDS = 4
# Partial participation and unequal sizes everywhere.
COMMON = ["heterogeneity=dirichlet", "heterogeneity.alpha=0.3", f"rounds={ROUNDS}", "seed=3", "evaluate.every=0",
          "checkpoint.every=2", "progress=none"]
TASKS = {
    "digits": ["task=digits", "clients=13", "cohort=5", "local.epochs=2"],
    "fashion_mnist": ["task=fashion_mnist", "task.samples=1200", "clients=10", "cohort=4", "local.epochs=1",
                      "oracle=auto"],
}
ALGORITHMS = ("fedavg", "scaffold", "fedadam", "mime")
BACKENDS = {
    "in process": ["backend=inprocess"],
    **{f"torchrun {n}": ["backend=torchrun", f"backend.workers={n}"] for n in (1, 2, 3, 4)},
    **{f"ray {n}": ["backend=ray", f"backend.workers={n}"] for n in (1, 2, 3)},
}
HALVES = {"torchrun 2, then ray 2": ("torchrun 2", "ray 2"), "ray 3, then in process": ("ray 3", "in process")}


def whole(task: str, algorithm: str, backend: str, runs: Path) -> str:
    """Return the SHA-256 of the final model of a run on one backend."""
    overrides = [*TASKS[task], f"algorithm={algorithm}", *COMMON, *BACKENDS[backend], f"runs={runs}"]
    _, history = perform(compose(overrides))
    return history.sha256


def halves(task: str, algorithm: str, first: str, second: str, runs: Path) -> str:
    """Return the SHA-256 of a run that stopped half-way and went on with another backend."""
    overrides = [*TASKS[task], f"algorithm={algorithm}", *COMMON, *BACKENDS[first], f"runs={runs}",
                 f"rounds={ROUNDS // 2}"]
    folder, _ = perform(compose(overrides))
    more = [*BACKENDS[second], f"rounds={ROUNDS}"]
    _, history = perform(recompose(folder.config_text(), more), folder=folder)
    return history.sha256


def rows(tasks: Iterable[str], algorithms: Iterable[str], places: Iterable[str], runs: Path
         ) -> Iterable[tuple[str, str, str, str]]:
    """Yield (task, algorithm, place, hash) for every run of the table."""
    for task in tasks:
        for algorithm in algorithms:
            for place in places:
                one = halves(task, algorithm, *HALVES[place], runs) if place in HALVES else \
                    whole(task, algorithm, place, runs)
                yield task, algorithm, place, one


def main() -> int:
    """Print the table; the exit code is 1 if two hashes of a row differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args = parser.parse_args()
    places = [*BACKENDS, *HALVES]
    found: dict[tuple[str, str], dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="fedlearn-equivalence-") as runs:
        total = len(args.tasks) * len(ALGORITHMS) * len(places)
        for task, algorithm, place, one in track(rows(args.tasks, ALGORITHMS, places, Path(runs)), "running", total,
                                                 console=Console(stderr=True)):
            found.setdefault((task, algorithm), {})[place] = one
    table = Table(title="SHA-256 of the final model (first 16 digits)")
    table.add_column("placement")
    for task, algorithm in found:
        table.add_column(f"{task}\n{algorithm}")
    for place in places:
        table.add_row(place, *(hashes[place][:16] for hashes in found.values()))
    equal = {row: len(set(hashes.values())) == 1 for row, hashes in found.items()}
    table.add_section()
    table.add_row("equal", *("yes" if same else "NO" for same in equal.values()))
    Console(width=max(60, 24 + 20 * len(found))).print(table)
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
