"""Reproduce the results of papers: `python -m benchmarks.papers R1a R4b`, or all of them; D1, D2, ... on real data.

Prints for each a table beside the expected figures and whether its criteria hold, with 95% intervals over the seeds,
and writes docs/results/papers.md with a plot of each.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import track

from .paper import SEEDS
from .record import HERE, found, one, overview, seconds_before, write

OUT = HERE.parents[1] / "docs" / "results" / "papers"


def main() -> int:
    """Run the asked reproductions; exit with 1 if a criterion does not hold."""
    modules = found()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"some of {', '.join(modules)}; without: all R")
    parser.add_argument("--data", action="store_true", help="without an ID: those on real data (D), too")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each ({SEEDS})")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (one per core)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of results and plots (docs/results/papers)")
    args = parser.parse_args()
    wrong = [name for name in args.ids if name not in modules]
    if wrong or args.seeds < 2 or args.workers < 1:
        parser.error(f"found {wrong[0]!r}; allowed: {', '.join(modules)}" if wrong else
                     "--seeds must be at least 2 and --workers at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = args.ids or [name for name in modules if args.data or name.startswith("R")]
    records = {}
    with ProcessPoolExecutor(min(args.workers, len(chosen)), mp_context=get_context("spawn")) as pool:
        # What took long the last time goes first, so that nobody waits for it in the end.
        order = sorted(chosen, key=lambda name: -seconds_before(args.out / f"{name}.json"))
        running = {pool.submit(one, name, args.seeds, args.out): name for name in order}
        for done in track(as_completed(running), "reproducing", len(running), console=Console(stderr=True)):
            text, records[running[done]] = done.result()
            print(text, flush=True)
    print("\n" + overview([records[name] for name in chosen]))
    write(args.out)
    return int(not all(c["holds"] for r in records.values() for c in r["criteria"]))


if __name__ == "__main__":
    sys.exit(main())
