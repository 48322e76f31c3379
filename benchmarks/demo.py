"""The first thing to run: ``make demo``.

Three algorithms train the same model on scikit-learn's digits, split over 20 clients by
Dirichlet(0.1), each client's work done by real worker processes: torchrun ranks that this command
starts. It ends with a table and the folders of the runs, and writes a report with pictures of the
curves and of the partition.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedlearn.config.assemble import parts, split
from fedlearn.config.compose import compose
from fedlearn.data.picture import counts, heat_map
from fedlearn.errors import FedlearnError
from fedlearn.running.execute import History
from fedlearn.running.perform import perform
from fedlearn.tracking.report import curves, table

SETTING = ["task=digits", "heterogeneity=dirichlet", "heterogeneity.alpha=0.1", "clients=20", "cohort=10",
           "local.epochs=3", "evaluate.every=2"]
ALGORITHMS = {"minibatch_sgd": ["algorithm.lr=1.0"], "fedavg": ["algorithm.lr=0.5"],
              "fedadam": ["algorithm.lr=0.3"]}


def main() -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2, help="torchrun ranks (2)")
    parser.add_argument("--runs", default="runs", help="where run folders go (runs)")
    args = parser.parse_args()
    place = ["backend=torchrun", f"backend.workers={args.workers}", f"rounds={args.rounds}", f"runs={args.runs}"]
    print(f"digits, 20 clients by Dirichlet(0.1), 10 of them a round, on {args.workers} torchrun ranks")
    results = []
    for name, choices in ALGORITHMS.items():
        overrides = [f"algorithm={name}", *choices, *SETTING, *place]
        try:
            folder, history = perform(compose(overrides))
        except FedlearnError as error:
            print("error:", error, file=sys.stderr)
            return 2
        assert folder is not None
        results.append((name, history, folder.path))
    written = report(Path(args.runs) / "demo", results, overrides)
    print(table([(name, history.metrics) for name, history, _ in results]))
    for name, _, path in results:
        print(f"{name:<14} {path}")
    print(f"{'report':<14} {written}\n\nLook closer: fedlearn show {results[1][2]}")
    return 0


def report(folder: Path, results: list[tuple[str, History, Path]], overrides: list[str]) -> Path:
    """Write the report with its two pictures into a folder and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [(name, history.metrics) for name, history, _ in results]
    curves(runs, folder / "curves.png")
    raw, store = split(parts(compose(overrides)))
    heat_map(counts(store, raw.classes), folder / "partition.png", "Digits over 20 clients, Dirichlet(0.1)")
    lines = ["# Three algorithms on digits, 20 clients by Dirichlet(0.1)", "", table(runs, colour=False), "",
             "![curves](curves.png)", "", "![samples per client and class](partition.png)", "",
             *(f"- {name}: SHA-256 `{history.sha256}`, `{path}`" for name, history, path in results), ""]
    written = folder / "report.md"
    written.write_text("\n".join(lines), encoding="utf-8")
    return written


if __name__ == "__main__":
    sys.exit(main())
