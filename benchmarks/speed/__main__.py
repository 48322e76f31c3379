"""Time bare PyTorch, fedlearn and other frameworks side by side; write speed.md, speed.png and speed.jsonl.

Examples::

    python -m benchmarks.speed                          bare PyTorch and fedlearn, under 5 minutes
    python -m benchmarks.speed --peers --all            with every peer that is set up, all algorithms
    python -m benchmarks.speed W2 --also "precision=bf16" --also "workers=2 precision=bf16"
    python -m benchmarks.speed population cohort sync   how a round's time grows
    python -m benchmarks.speed profile                  where it goes
    python -m benchmarks.speed --quick --out /tmp/toy   a smoke test on toy data
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import machine, report, studies
from benchmarks.speed.contestants import BARE, for_rounds, for_whole, ours, read_whole
from benchmarks.speed.race import ROOT, Contestant, race, race_whole
from benchmarks.speed.workloads import WORKLOADS, Workload, prepare, quick
from fedlearn.errors import FedlearnError

STUDIES = ("population", "cohort", "sync", "profile")
# One round of milliseconds after others' turns finds cold caches, which it does not find in a run.
BLOCK = 5


class Recorder:
    """Writes every measurement to speed.jsonl at once, and tells what happens on stderr."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w")
        self.name = ""
        self.records: list[dict[str, Any]] = []

    def __call__(self, record: dict[str, Any]) -> None:
        """Record a measurement of the present race; final weights are compared, not kept."""
        if self.name:
            record = {"race": self.name, **record}
        if record["kind"] == "skipped":
            print(f"  {record['name']} is left out: {record['reason']}", file=sys.stderr)
        if record["kind"] in ("ready", "final"):
            print(f"  {record['name']}: {record['kind']}", file=sys.stderr)
        self.records.append(record)
        if record["kind"] != "final":  # these wait until the race is over
            self.put(record)

    def put(self, record: dict[str, Any]) -> None:
        """Write one line."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def race(self, name: str, title: str, about: str, table: str, reference: str) -> None:
        """Begin a race."""
        self.name = name
        print(f"{title}: {about}", file=sys.stderr)
        self({"kind": "race", "title": title, "about": about, "table": table, "reference": reference})

    def finish(self, same: Sequence[str]) -> None:
        """End a race: compare the final weights of those that should be the same with bare PyTorch's."""
        finals = [r for r in self.records if r.get("race") == self.name and r["kind"] == "final"]
        models = {r["name"]: Path(r.pop("model")) for r in finals}
        for record in finals:
            if BARE in models and record["name"] in same:
                mine, theirs = np.load(models[record["name"]]), np.load(models[BARE])
                record["difference"] = float(np.abs(mine - theirs).max())
            self.put(record)
        self.name = ""


def main() -> int:
    """Run what was asked for and return the exit code: 1 if nothing could be timed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join([*WORKLOADS, *STUDIES])} (all workloads)")
    parser.add_argument("--peers", action="store_true", help="also pfl, FedLab and Flower, where set up")
    parser.add_argument("--all", action="store_true",
                        help="also autograd, bf16, SCAFFOLD, FedProx, FedAdam on W2, torchrun in W3, bare PyTorch with "
                             "2 threads")
    parser.add_argument("--also", action="append", default=[], metavar="CHOICES",
                        help="fedlearn with these choices, e.g. 'workers=2 algorithm=fedprox oracle=autograd'")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="contestants by name; repeatable")
    parser.add_argument("--rounds", type=int, help="timed rounds instead of the workload's")
    parser.add_argument("--repeats", type=int, default=3, help="timed processes in W3 (3)")
    parser.add_argument("--block", type=int,
                        help=f"consecutive rounds in a turn ({BLOCK}; 1 where few are timed)")
    parser.add_argument("--patience", type=float, default=15.0,
                        help="seconds that each race may wait for an idle machine (15)")
    parser.add_argument("--quick", action="store_true", help="toy data, one round: does it work at all?")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder (docs/results)")
    args = parser.parse_args()
    if unknown := [name for name in args.what if name not in WORKLOADS and name not in STUDIES]:
        parser.error(f"found {unknown[0]!r}; allowed: {', '.join([*WORKLOADS, *STUDIES])}")
    recorder = Recorder(args.out / "speed.jsonl")
    recorder({"kind": "machine", **machine.about(), "commit": machine.commit(),
              "command": shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]])})
    with tempfile.TemporaryDirectory(prefix="fedlearn-speed-") as scratch:
        for name in args.what or WORKLOADS:
            if name in STUDIES:
                _study(name, args, recorder, Path(scratch))
            else:
                _workload(quick(WORKLOADS[name]) if args.quick else WORKLOADS[name], args, recorder, Path(scratch))
    print(report.write(args.out))
    print(f"written: {args.out / 'speed.md'}, speed.png, speed.jsonl", file=sys.stderr)
    return 0 if any(r["kind"] in ("round", "profile") for r in recorder.records) else 1


def _workload(workload: Workload, args: argparse.Namespace, recorder: Recorder, scratch: Path) -> None:
    if args.rounds and not workload.whole:
        workload = replace(workload, rounds=args.rounds)
    table = "whole" if workload.whole else "rounds"
    recorder.race(workload.name, workload.name, workload.about, table, BARE)
    scratch = scratch / workload.name
    scratch.mkdir()
    try:
        folder = prepare(workload)
    except FedlearnError as error:
        recorder({"kind": "skipped", "name": workload.name, "reason": " ".join(str(error).split())})
        recorder.finish([])
        return
    if workload.whole:
        chosen = _only(for_whole(workload, args.peers, args.all, scratch), args.only)
        race_whole(chosen, folder, 1 if args.quick else args.repeats, scratch, recorder, args.patience, read=read_whole)
    else:
        chosen = for_rounds(workload, args.peers, args.all)
        chosen += [ours(**dict(pair.split("=", 1) for pair in text.split())) for text in args.also]
        chosen = _only(chosen, args.only)
        race(chosen, folder, workload.rounds, workload.warmup, scratch, recorder, _block(args, workload.rounds),
             args.patience)
    recorder.finish([c.name for c in chosen if c.same])


def _study(name: str, args: argparse.Namespace, recorder: Recorder, scratch: Path) -> None:
    rounds, warmup = (1, 1) if args.quick else (args.rounds or studies.ROUNDS.get(name, 20), 3)
    run: Callable[[list[Contestant], Path], None] = lambda chosen, folder: race(  # noqa: E731
        _only(chosen, args.only), folder, rounds, warmup, scratch, recorder, _block(args, rounds), args.patience)
    if name == "population":
        recorder.race(name, "Round time against population",
                      f"FedAvg in process, cohort {studies.COHORT}, {studies.SAMPLES} samples a client, made when "
                      "asked for, or read from a memory-mapped store, "
                      f"MLP {studies.FEATURES}-64-{studies.CLASSES}, batch {studies.BATCH}; ratio to "
                      f"{studies.of(1000)}.", "growth", studies.of(1000))
        run(studies.population(scratch, rounds + warmup, (100, 1000) if args.quick else studies.POPULATIONS), scratch)
        recorder.finish([])
    elif name == "cohort":
        workload = replace(WORKLOADS["W1L"], rounds=rounds, warmup=warmup)
        if args.quick:
            workload = quick(workload)
        recorder.race(name, "Round time against cohort", f"FedAvg in process on W1L: {workload.about}; "
                      "ratio to the smallest cohort.", "growth", f"cohort {studies.COHORTS[0]}")
        sizes = (2, 4) if args.quick else studies.COHORTS
        try:
            run(studies.cohorts(sizes), prepare(workload))
        except FedlearnError as error:
            recorder({"kind": "skipped", "name": name, "reason": " ".join(str(error).split())})
        recorder.finish([])
    elif name == "profile":
        recorder.race(name, "Where a round's time goes", "`fedlearn run ... profile=true` in one process, without "
                      "evaluation and checkpoints.", "phases", "")
        for workload, count in studies.PROFILED.items():
            chosen = quick(WORKLOADS[workload]) if args.quick else replace(WORKLOADS[workload], rounds=count, warmup=0)
            recorder(studies.profile(chosen, scratch))
        recorder.finish([])
    else:
        for parameters in (1000,) if args.quick else studies.SIZES:
            recorder.race(f"sync-{parameters}", f"Synchronisation, {parameters:,} parameters",
                          "A round of two clients without local work against one all_reduce of the same float32 "
                          "vector over two gloo processes; ratio to that.", "growth", studies.RAW)
            run(studies.synchronisation(parameters, rounds + warmup), scratch)
            recorder.finish([])


def _block(args: argparse.Namespace, rounds: int) -> int:
    return args.block or (BLOCK if rounds >= 4 * BLOCK else 1)


def _only(contestants: list[Contestant], patterns: list[str]) -> list[Contestant]:
    return [c for c in contestants if not patterns or any(fnmatch.fnmatch(c.name, p) for p in patterns)]


if __name__ == "__main__":
    sys.exit(main())
