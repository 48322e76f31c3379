"""Two machines that hold data, of which one is killed and comes back: ``python ray_machines.py FOLDER``.

They are Ray's nodes on this machine; the head has no CPU. It prints what is said of the missing machine, then what
happened, and the model's digest.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import ray
from backends.private import private
from problems import begin, experiment
from ray._private.node import Node
from ray._private.parameter import RayParams

from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.ray import cluster
from fedlearn.backends.ray.backend import RayActors
from fedlearn.errors import WorkerError
from fedlearn.vectors import digest

HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}


def machine(token: str, gcs: str, folder: Path) -> Any:
    """Start a node with one CPU."""
    settings = {**cluster.QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with cluster.environment(settings):
        return Node(RayParams(gcs_address=gcs, num_cpus=1, num_gpus=0, object_store_memory=100 * 2**20,
                              node_ip_address="127.0.0.1", temp_dir=str(folder), include_log_monitor=False,
                              min_worker_port=0, max_worker_port=0, node_manager_port=0,
                              dashboard_agent_listen_port=None),
                    head=False, shutdown_at_exit=False, spawn_reaper=False)


def kill(node: Any) -> None:
    """Kill all processes of a node at once, as a power cut does: its raylet, its actors and its agents."""
    raylets = [info.process for infos in node.all_processes.values() for info in infos if info.process.poll() is None]
    found = {process.pid for process in raylets}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) in found:
                os.kill(int(stat.parent.name), signal.SIGKILL)
    for process in raylets:
        process.kill()
        process.wait()


def main(out: Path) -> None:
    """Run four rounds; the second machine is missed after the first one, and started again in the middle of another."""
    folder, token = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), "ab" * 32
    secrets.token_hex = lambda *_: token
    cluster.PROMPT |= HEALTH
    nodes: list[Any] = []
    cluster.start(ray, 0, 100 * 2**20, folder)
    gcs = ray.get_runtime_context().gcs_address
    again = Timer(2, lambda: nodes.append(machine(token, gcs, folder)))
    try:
        nodes += [machine(token, gcs, folder) for _ in range(2)]
        loop, workers = begin(experiment(Scaffold(), rounds=4, task=private(out / "data", 2),
                                         backend=RayActors(workers=2)))
        assert {seat.machine.node for seat in workers.seats} == {node._node_id for node in nodes}
        loop.round(0)
        lost, patience = workers.seats[1], workers.startup
        kill(next(node for node in nodes if node._node_id == lost.machine.node))
        workers.startup = 5.0
        try:
            loop.round(1)
        except WorkerError as e:
            print(e, flush=True)
        workers.startup = patience
        again.start()
        for r in range(1, 4):
            loop.round(r)
        [event] = workers.events()
        workers.close()
        print(event["event"], event["recovery_seconds"] > 5, digest(loop.model()), flush=True)
    finally:
        if again.ident is not None:
            again.join()
        cluster.stop(ray)
        for node in nodes:
            kill(node)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
