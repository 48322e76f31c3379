"""A run on a Ray cluster, for tests that do something to it: ``python ray_driver.py SECONDS ROUNDS TIMEOUT SETTINGS``.

It prints what there is to aim at when the actors are up, then its model's digest or its error; a client's first step
takes SECONDS; SETTINGS of the backend are JSON. With "wait" among them it waits before its last round until its
standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from backends.unruly import Slow
from problems import begin, experiment

from fedlearn.backends.ray.backend import RayActors
from fedlearn.errors import FedlearnError
from fedlearn.vectors import digest


def main(seconds: float, rounds: int, timeout: float, settings: dict) -> int:
    """Run, and return the exit code."""
    wait = settings.pop("wait", False)
    try:
        loop, workers = begin(experiment(Slow(seconds=seconds), rounds=rounds, cohort=4,
                                         backend=RayActors(**{"workers": 2, **settings})))
    except FedlearnError as e:
        print(e, flush=True)
        return e.code
    import ray

    assert not [name for name in os.environ if name.startswith("RAY_AUTH")], "the token is still in the environment"
    workers.backend = replace(workers.backend, timeout=timeout)
    workers.watch.patience = timeout / 2
    node = ray._private.worker._global_node
    pids = {name: infos[0].process.pid for name, infos in node.all_processes.items() if infos}
    print(json.dumps({"gcs": node.gcs_address, "pids": pids, "actors": [seat.pid for seat in workers.seats],
                      "driver": os.getpid(),
                      "folder": str(workers.folder)}), flush=True)
    try:
        for r in range(rounds):
            if wait and r == rounds - 1:
                sys.stdin.read()
            loop.round(r)
        print(digest(loop.model()), flush=True)
    except FedlearnError as e:
        print(e, flush=True)
        return e.code
    finally:
        workers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])))
