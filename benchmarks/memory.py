"""How much memory a coordinator takes, in models of P float32 parameters: ``python -m benchmarks.memory``.

Four clients work in two rounds, on two workers. Local work is trivial, so what is seen is what holds vectors [P]:
the coordinator's anonymous memory at its peak, less that of the same run with a tiny model. A coordinator that
works on clients too also holds its worker's y and upload; torchrun is therefore measured twice, once with
``dedicated`` and two further ranks. Ray's object store is shared memory, and counted apart.

The bar is 3 models and what the algorithm's state takes beyond the model (FedAdam: two moments).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, ClassVar

import torch

from benchmarks.speed.idle import NoTask
from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg

TINY = 1000
PLACES = ("in process", "torchrun", "torchrun, dedicated", "ray")
STATE = {"fedavg": 1, "fedadam": 3}  # models in the server's state


@dataclass(frozen=True)
class Shrink(FedAvg):
    """FedAvg on clients that shrink the model a little."""

    coordinatewise: ClassVar[bool] = True

    def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
        """Return y a little smaller."""
        return y.mul_(0.99)


@dataclass(frozen=True)
class ShrinkAdam(FedAdam):
    """FedAdam on clients that shrink the model a little."""

    coordinatewise: ClassVar[bool] = True

    def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
        """Return y a little smaller."""
        return y.mul_(0.99)


ALGORITHMS: dict[str, Any] = {"fedavg": Shrink(), "fedadam": ShrinkAdam()}


class Peak:
    """The largest anonymous and shared memory of this process while it watches, in bytes."""

    def __enter__(self) -> Peak:
        self.anonymous = self.shared = 0
        self.stop = Event()
        self.thread = Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(0.001):
            lines = Path("/proc/self/status").read_text().splitlines()
            kb = {key: int(value.split()[0]) for key, value in (line.split(":") for line in lines
                                                                if line.startswith(("RssAnon", "RssShmem")))}
            self.anonymous = max(self.anonymous, 1024 * kb["RssAnon"])
            self.shared = max(self.shared, 1024 * kb["RssShmem"])


def backend(place: str) -> Any:
    """Return two workers."""
    if place.startswith("torchrun"):
        from fedlearn.backends.torchrun.backend import Torchrun

        return Torchrun(workers=3, dedicated=True) if "dedicated" in place else Torchrun(workers=2)
    if place == "ray":
        from fedlearn.backends.ray.backend import RayActors

        return RayActors(workers=2)
    from fedlearn.backends.inprocess import InProcess

    return InProcess()


def one(place: str, algorithm: str, reduce: str, parameters: int) -> dict[str, Any]:
    """Measure this process, as the coordinator: models of anonymous memory, of shared memory, seconds."""
    import fedlearn

    torch.set_num_threads(1)
    if place == "ray":  # one cluster for both runs, so that connecting to it does not count
        import ray

        from fedlearn.backends.ray.cluster import PROMPT, QUIET

        os.environ.update(QUIET)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                 object_store_memory=2**28 + 40 * parameters, _system_config=PROMPT)
    peaks = []
    for p in (TINY, parameters):
        began = time.perf_counter()
        with Peak() as peak:
            fedlearn.run(algorithm=ALGORITHMS[algorithm], task=NoTask(p, 4), rounds=2, backend=backend(place),
                         reduce=reduce, checkpoint_every=0, progress="none")
        peaks.append(peak)
    tiny, large = peaks
    return {"place": place, "algorithm": algorithm, "reduce": reduce,
            "models": (large.anonymous - tiny.anonymous) / (4 * parameters),
            "shared": (large.shared - tiny.shared) / (4 * parameters), "bar": 2 + STATE[algorithm],
            "seconds": time.perf_counter() - began}


def measure(place: str, algorithm: str, reduce: str, parameters: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", "--one", place, algorithm, reduce, "--parameters",
                           str(parameters)], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{place}, {algorithm}, reduce={reduce} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a line for every place, algorithm and sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--place", choices=PLACES, action="append", help="only here; repeatable")
    parser.add_argument("--one", nargs=3, metavar=("PLACE", "ALGORITHM", "REDUCE"),
                        help="measure this process, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one, args.parameters)))
        return
    print(f"{args.parameters:,} float32 parameters, 4 clients, 2 workers; memory in models of "
          f"{4 * args.parameters / 1e6:,.0f} MB\n")
    print(f"{'coordinator':<22}{'algorithm':<11}{'reduce':<8}{'peak':>6}{'shared':>8}{'bar':>5}{'seconds':>9}")
    for place in args.place or PLACES:
        for algorithm in STATE:
            for reduce in ("exact", "fast"):
                m = measure(place, algorithm, reduce, args.parameters)
                print(f"{place:<22}{algorithm:<11}{reduce:<8}{m['models']:>6.2f}{m['shared']:>8.2f}{m['bar']:>5}"
                      f"{m['seconds']:>9.1f}", flush=True)


if __name__ == "__main__":
    from benchmarks import memory  # its classes must have a name that other processes can import

    memory.main()
