"""Time to a target loss over slow networks, local steps against DistributedDataParallel: network.md, .svg, .jsonl.

Three hosts are made on this machine (network namespaces; Linux, root). Every method trains across them to the same
test loss, on links of several speeds.

Examples::

    python -m benchmarks.network                        all methods, about 25 minutes on two cores
    python -m benchmarks.network --mbit 10 100          on links of other speeds
    python -m benchmarks.network --quick --out /tmp/n   a few methods to an easy target, about two minutes
    python -m benchmarks.network --draw                 only table and picture, from network.jsonl
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.network import report
from benchmarks.network.hosts import ROOT, Failed, Hosts, hosts
from benchmarks.network.plan import ALL_REDUCE, QUICK, SUMS, Method, Plan, rounds_of
from benchmarks.speed import machine
from benchmarks.speed.race import NOISY
from fedlearn.chaos.network import available
from fedlearn.errors import FedlearnError


class Recorder:
    """Writes every measurement to a file at once, which takes the place of ``path`` once it is whole; tells stderr."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.part = path, path.with_suffix(".part")
        self.file, self.began = self.part.open("w"), time.monotonic()

    def __call__(self, record: Mapping[str, Any], said: str) -> None:
        """Record a measurement and say so."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"{minutes:2}:{seconds:02}  {said}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Put the file where it belongs, in place of an earlier one."""
        self.file.close()
        self.part.replace(self.path)


def measure(plan: Plan, everybody: Hosts, record: Recorder) -> None:
    """Find every method's step size and its rounds to the target, then time synchronisations and training.

    Raises:
        Failed: if a host fails.
    """
    record({"kind": "ready", **everybody.ready()}, "three hosts are ready")
    found = searched(plan, everybody, record)
    everybody.limit(max(plan.mbits))
    rounds = {m: rehearsed(plan, m, found[m.like or m.name]["lr"], everybody, record) for m in plan.methods}
    calm = machine.Patience(plan.patience)
    for mbit in plan.mbits:
        everybody.limit(mbit)
        synchronised(plan, mbit, everybody, calm, record)
    before: dict[tuple[float, Method], float] = {}
    for turn in range(plan.passes):
        for mbit in plan.mbits:
            everybody.limit(mbit)
            for method in plan.order(turn):
                if rounds[method]:
                    short = turn == 0 or turn < plan.passes - 1 or before[mbit, method] > plan.whole
                    told = {"method": method.to_json(found[method.like or method.name]["lr"]),
                            "rounds": rounds[method], "limit": plan.limit * short, "least": plan.least}
                    before[mbit, method] = timed(plan, method, mbit, turn, told, everybody, calm, record)


def searched(plan: Plan, everybody: Hosts, record: Recorder) -> dict[str, dict[str, Any]]:
    """Return what a search of its step size found for every method, each on a host of its own, without network."""
    own = [m for m in plan.methods if not m.like]
    found = {}
    # Those with the most rounds take the longest.
    own.sort(key=lambda m: m.steps)
    for number, answer in everybody.apart([{"do": "search", "method": m.to_json(m.lr)} for m in own]):
        name = own[number].name
        found[name] = answer
        record({"kind": "search", "name": name, **answer},
               f"{name}: step size {answer['lr']:g}, {answer['rounds']} rounds (of {len(answer['tried'])} tried)")
    return found


def rehearsed(plan: Plan, method: Method, lr: float, everybody: Hosts, record: Recorder) -> int | None:
    """Return after how many rounds the hosts together reach the target; None if they do not."""
    answer = everybody.together(do="train", method=method.to_json(lr), rounds=plan.problem.most // method.steps,
                                target=plan.problem.target)
    about = asdict(method) | {"kind": "method", "lr": lr, "target_at": answer["reached"], "sha256": answer["sha256"]}
    record(about | {"loss": answer["loss"]}, f"{method.name}: {answer['reached']} rounds on three hosts")
    return answer["reached"]


def timed(plan: Plan, method: Method, mbit: float, turn: int, told: Mapping[str, Any], everybody: Hosts,
          calm: machine.Patience, record: Recorder) -> float:
    """Time a method on a network, to the target or for as long as it is told; return its seconds to the target."""
    busy = calm.wait(NOISY)
    answer = everybody.together(do="train", **told)
    rounds, done = told["rounds"], answer["rounds"]
    seconds, short = report.to_target(answer, rounds), " (extrapolated)" * (done < rounds)
    record({"kind": "cell", "name": method.name, "mbit": mbit, "pass": turn, "of": rounds, "to_target": seconds,
            "noisy": busy > NOISY, **answer},
           f"{mbit:g} Mbit/s, pass {turn + 1}/{plan.passes}  {method.name}: {done} of {rounds} rounds in "
           f"{answer['seconds']:.1f} s, {seconds:.1f} s to the target{short}")
    return seconds


def synchronised(plan: Plan, mbit: float, everybody: Hosts, calm: machine.Patience, record: Recorder) -> None:
    """Time synchronisations of a vector as long as the model, of every kind in turns; a turn's first is not kept."""
    kinds: dict[str, Any] = {ALL_REDUCE: ALL_REDUCE, **{f"fedlearn, {name}": how for how, name in SUMS.items()}}
    for turn in range(plan.turns):
        for name, how in kinds.items():
            busy = calm.wait(NOISY)
            answer = everybody.together(do="synchronise", sum=how, rounds=rounds_of(mbit))
            record({"kind": "sync", "name": name, "mbit": mbit, "turn": turn, "laps": answer["laps"][1:],
                    "received": answer["received"], "sent": answer["sent"], "noisy": busy > NOISY},
                   f"{mbit:g} Mbit/s, turn {turn + 1}/{plan.turns}  {name}: "
                   f"{1e3 * sorted(answer['laps'])[len(answer['laps']) // 2]:.0f} ms")


def main() -> int:
    """Measure, write the table and the picture, and return the exit code: 1 if something failed, 2 if it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, nargs="+", help="megabits a second of every link, each way")
    parser.add_argument("--passes", type=int, help="how often every method is timed on every network (3)")
    parser.add_argument("--limit", type=float, help="seconds after which the rest is extrapolated (4)")
    parser.add_argument("--target", type=float, help="test loss to be reached (0.40)")
    parser.add_argument("--quick", action="store_true", help="a few methods, an easy target, one pass")
    parser.add_argument("--draw", action="store_true", help="measure nothing, only draw what was measured")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder (docs/results)")
    args = parser.parse_args()
    if args.draw:
        print(report.write(args.out))
        return 0
    if reason := available():
        print(f"skipped: the hosts are network namespaces, and none can be made here: {reason}", file=sys.stderr)
        return 2
    plan = QUICK if args.quick else Plan()
    given = {"mbits": args.mbit and tuple(args.mbit), "passes": args.passes, "limit": args.limit}
    plan = replace(plan, **{key: value for key, value in given.items() if value})
    if args.target:
        plan = replace(plan, problem=replace(plan.problem, target=args.target))
    return benchmark(plan, args.out, shlex.join(["python", "-m", "benchmarks.network", *sys.argv[1:]]))


def benchmark(plan: Plan, out: Path, command: str) -> int:
    """Carry a plan out and write what came of it to a folder."""
    record = Recorder(out / "network.jsonl")
    about = {"kind": "machine", **machine.about(), "commit": machine.commit(), "command": command,
             "problem": asdict(plan.problem), "mbits": plan.mbits, "passes": plan.passes, "limit": plan.limit,
             "least": plan.least, "whole": plan.whole}
    record(about, "making three hosts")
    try:
        with tempfile.TemporaryDirectory(prefix="fedlearn-network-") as scratch, \
                hosts(plan.problem, Path(scratch)) as everybody:
            measure(plan, everybody, record)
    except (Failed, FedlearnError) as error:
        record.file.close()
        print(f"error: {error}; what was measured until then is in {record.part}", file=sys.stderr)
        return 1
    record({"kind": "end", "minutes": round((time.monotonic() - record.began) / 60, 1)}, "done")
    record.finish()
    print(report.write(out))
    print(f"written: {out / 'network.md'}, network.svg, network.jsonl", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
