"""One host of the benchmark: a process in a network of its own, which does what it is asked for and answers.

Questions come as JSON, one a line, to all hosts at once; each answers with a line. Where the hosts work together they
are ranks as under torchrun: fedlearn's backend, and torch's own process group for DistributedDataParallel, find the
others by the same variables of the environment. What matters is what host 0 answers: clocks run there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

import fedlearn
from benchmarks.network import data_parallel
from benchmarks.network.plan import ALL_REDUCE, DDP, HOSTS, Problem
from benchmarks.network.training import looks, options, search, task_for
from benchmarks.speed.idle import Idle, NoTask
from fedlearn.chaos.network import INTERFACE
from fedlearn.errors import Stopped
from fedlearn.policies.sampling import FullParticipation
from fedlearn.vectors import load


class Clock:
    """A tracker that times rounds without evaluations, and stops the run once it has seen enough.

    That is after ``limit`` seconds and ``least`` rounds (0: never), or at the ``target``, where there is one.
    A loop of one's own, without signals, looks at ``enough``.
    """

    def __init__(self, rounds: int, limit: float = 0.0, least: int = 1, target: float | None = None,
                 signals: bool = True) -> None:
        self.rounds, self.limit, self.least, self.target, self.signals = rounds, limit, least, target, signals
        self.laps: list[float] = []
        self.loss: float | None = None
        self.reached: int | None = None
        self.enough = False
        self.since, self.before, self.after = 0.0, (0, 0), (0, 0)   # the bytes when the rounds began, and ended

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """The clock starts with the line of round 0, when all ranks are there and the first model was evaluated."""

    def round(self, line: Mapping[str, Any]) -> None:
        """Note a round; an evaluation is no part of it."""
        if line["round"] == 0:
            self.before = traffic()
        else:
            self.laps.append(perf_counter() - self.since - line["seconds"].get("evaluate", 0.0))
            self.after, self.loss = traffic(), line.get("test_loss")
            if self.target is not None and self.loss is not None and self.loss <= self.target:
                self.reached = line["round"]
            late = self.limit and sum(self.laps) > self.limit and len(self.laps) >= self.least
            self.enough = bool(late or self.reached)
            if self.signals and self.enough and line["round"] < self.rounds:
                signal.raise_signal(signal.SIGTERM)     # all ranks end after this round
        self.since = perf_counter()

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Nothing more is to be timed."""

    def answer(self) -> dict[str, Any]:
        """Return what was timed, with the bytes through this host's link in a round."""
        return measured(self.laps, self.before, self.after) | {"loss": self.loss, "reached": self.reached}


def measured(laps: list[float], before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    """Return rounds as they are recorded: their number, all seconds, the first one's, and the bytes of one."""
    received, sent = (now - then for now, then in zip(after, before, strict=True))
    return {"rounds": len(laps), "seconds": sum(laps), "first": laps[0], "received": received / len(laps),
            "sent": sent / len(laps)}


def traffic() -> tuple[int, int]:
    """Return the bytes that this host has received and sent so far, with all that the protocols below add."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == INTERFACE:
            return int(counts.split()[0]), int(counts.split()[8])
    return 0, 0


class Host:
    """What a host holds from one question to the next: the problem's data, and DDP's process group."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.problem, self.token = Problem(**given["problem"]), given["token"]
        self.rank, self.task = int(os.environ["RANK"]), task_for(self.problem)
        meeting = f"tcp://{os.environ['MASTER_ADDR']}:{given['port']}"
        dist.init_process_group("gloo", init_method=meeting, rank=self.rank, world_size=HOSTS,
                                timeout=timedelta(minutes=10))

    def do(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a question."""
        # Evaluations leave their weights in the task's module, and all ranks must bring the same task.
        load(self.task.model, self.task.initial(self.problem.seed))
        if asked["do"] == "search":
            return search(self.problem, asked["method"], self.task)
        os.environ["MASTER_PORT"] = str(asked["port"])
        if asked["do"] == "synchronise":
            return self.synchronise(asked)
        return self.train(asked)

    def train(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Train for so many rounds; with ``target`` look for it, without it time them."""
        method, rounds, target = asked["method"], asked["rounds"], asked.get("target")
        ddp = method["algorithm"] == DDP
        clock = Clock(rounds, asked.get("limit", 0.0), asked.get("least", 1), target, signals=not ddp)
        every = 0 if target is None else looks(self.problem, method["steps"])
        if ddp:
            return data_parallel.train(self.problem, self.task, method, clock, every)
        backend = fedlearn.Torchrun(wire=method["wire"], token=self.token)
        history = run(options(self.problem, method, self.task, rounds, every), backend, clock)
        return clock.answer() | {"sha256": history.sha256} if self.rank == 0 else {}

    def synchronise(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Time synchronisations of a vector [P] and nothing else."""
        rounds, parameters = asked["rounds"], self.task.initial(0).numel()
        if asked["sum"] == ALL_REDUCE:
            vector = torch.full((parameters,), 0.5)
            dist.barrier()
            laps, before = [], traffic()
            for _ in range(rounds):
                began = perf_counter()
                dist.all_reduce(vector)
                vector.mul_(1 / HOSTS)
                laps.append(perf_counter() - began)
            return measured(laps, before, traffic()) | {"laps": laps}
        reduce, wire = asked["sum"]
        clock = Clock(rounds)
        run({"algorithm": Idle(), "task": NoTask(parameters, HOSTS), "rounds": rounds, "reduce": reduce,
             "sampling": FullParticipation(), "evaluate_every": 0, "checkpoint_every": 0, "progress": "none"},
            fedlearn.Torchrun(wire=wire, token=self.token), clock)
        return clock.answer() | {"laps": clock.laps} if self.rank == 0 else {}


def run(given: dict[str, Any], backend: Any, clock: Clock) -> Any:
    """Run fedlearn on all ranks and return the history, also where the clock stopped it."""
    try:
        return fedlearn.run(**given, backend=backend, trackers=[clock])
    except Stopped as stopped:
        return stopped.history


def main() -> None:
    """Answer questions until there are no more."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)   # what libraries print goes to stderr
    torch.set_num_threads(1)
    host = Host(json.loads(sys.argv[1]))
    print(json.dumps({"parameters": host.task.initial(0).numel(), "versions": {"torch": torch.__version__}}), file=out)
    for line in sys.stdin:
        try:
            answer = host.do(json.loads(line))
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}), file=out)
            raise
        print(json.dumps(answer), file=out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
