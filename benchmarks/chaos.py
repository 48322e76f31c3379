"""Death does not change the result: ``make chaos`` injects a hundred faults and prints what became of them.

FedAvg and SCAFFOLD on digits run in process, on torchrun ranks and on Ray actors, each undisturbed and then under its
share of the faults, several to a run. All hashes of an algorithm must be one.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from fedlearn.chaos.rehearse import Asked, ended_by_sigterm, rehearse
from fedlearn.chaos.report import Rehearsal, failures, table, totals

COMMON = ("task=digits", "clients=20", "cohort=8", "local.epochs=1", "heterogeneity.alpha=0.3", "rounds=30",
          "evaluate.every=0", "checkpoint.every=5", "check_resources=false")
ALGORITHMS = ("fedavg", "scaffold")
BACKENDS = ("inprocess", "torchrun", "ray")


def shares(faults: int, places: int) -> list[int]:
    """Split a number of faults as evenly as it goes."""
    return [faults // places + (i < faults % places) for i in range(places)]


def agree(rehearsals: dict[tuple[str, str], Rehearsal]) -> bool:
    """Return whether every algorithm has one undisturbed hash, wherever it ran."""
    hashes: dict[str, set[str]] = {}
    for (algorithm, _), rehearsal in rehearsals.items():
        hashes.setdefault(algorithm, set()).add(rehearsal.undisturbed.sha256)
    return all(len(found) == 1 for found in hashes.values())


def main() -> int:
    """Rehearse in every place and print the table; the exit code is 1 if anything was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--out", type=Path, default=Path("runs/chaos") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}")
    args = parser.parse_args()
    places = [(algorithm, backend) for backend in args.backends for algorithm in args.algorithms]
    found: dict[tuple[str, str], Rehearsal] = {}
    for i, ((algorithm, backend), faults) in enumerate(zip(places, shares(args.faults, len(places)), strict=True)):
        print(f"{algorithm}, {backend}", flush=True)
        asked = Asked((f"algorithm={algorithm}", f"backend={backend}", *COMMON), max(1, faults),
                      args.seed + i, minutes=30, out=args.out / f"{algorithm}-{backend}")
        with ended_by_sigterm():
            found[algorithm, backend], _ = rehearse(asked, partial(print, " ", flush=True))
    print()
    for (algorithm, backend), rehearsal in found.items():
        print(f"{algorithm + ', ' + backend:<20}  sha256 {rehearsal.undisturbed.sha256[:16]}  {totals([rehearsal])}")
    print(f"\n{table([v for r in found.values() for v in r.judged])}\n\n{totals(list(found.values()))}")
    for rehearsal in found.values():
        for text in failures(rehearsal):
            print("failed ", rehearsal.title, "|", text)
    if not agree(found):
        print("failed  the undisturbed runs of an algorithm end in different hashes")
    print(f"reports {args.out}/*/chaos.md")
    return 0 if agree(found) and all(r.good for r in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
