"""Coded rounds: data blocks are replicated over machines; wait for the fastest, decode.

The task's clients are the data *blocks*. The algorithm's code says which machine holds which
blocks; a machine replies with the mean gradient over all its data, and the server weights the
replies that came so that the sum over blocks is recovered as well as the code allows. Who is fast
is told by the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..contracts import CodedAlgorithm, RoundInfo, Task, Vec
from ..errors import ConfigError, in_range
from ..experiment import Experiment, RoundReport
from ..policies.weighting import UniformWeighting
from ..seeds import generator
from ..vectors import digest, tree_flat, tree_like
from ..work import Work, Workers, bytes_of
from .synchronous import mean_of


@dataclass(frozen=True)
class Coded:
    """Each round leaves out the slowest share ``stragglers`` of the machines."""

    stragglers: float = 0.1

    kind: ClassVar[type] = CodedAlgorithm
    verb: ClassVar[str] = "map_reduce"

    def __post_init__(self) -> None:
        in_range("stragglers", self.stragglers, least=0, below=1)

    def check(self, experiment: Experiment) -> None:
        """Refuse what cannot be decoded: several steps, mini-batches, sampled blocks, other weights."""
        local, task = experiment.local, experiment.task
        if local.steps != 1 or local.batch_size:
            raise ConfigError("local", f"steps={local.steps}, batch_size={local.batch_size}",
                              "local.steps=1 local.batch_size=null with protocol=coded",
                              "Only sums of whole blocks can be decoded.")
        if experiment.clients_at_a_time != len(task.sizes):
            raise ConfigError("cohort", experiment.cohort, "null with protocol=coded", "Every block counts.")
        if not isinstance(experiment.weighting, UniformWeighting):
            raise ConfigError("weighting", experiment.weighting.name, "uniform with protocol=coded",
                              "The code decides the weights.")
        if experiment.sampling.name not in ("uniform", "full"):
            raise ConfigError("sampling", experiment.sampling.name, "uniform or full with protocol=coded",
                              "Every machine is asked in every round.")
        if not hasattr(task, "regroup"):
            raise ConfigError("task", type(task).__name__, "a task with client data with protocol=coded",
                              "Closed-form problems have no blocks to replicate.")
        self.assignment(experiment)

    def prepare(self, experiment: Experiment) -> Task:
        """Return the task with machines for clients, each holding its blocks."""
        held = self.assignment(experiment)
        groups = [[int(block) for block in np.flatnonzero(column)] for column in held.T]
        return experiment.task.regroup(groups)  # type: ignore[attr-defined]

    def assignment(self, experiment: Experiment) -> np.ndarray:
        """Return the code's matrix [blocks, machines]; the same whenever it is asked for."""
        assert isinstance(experiment.algorithm, CodedAlgorithm)
        return experiment.algorithm.assignment(len(experiment.task.sizes), generator(experiment.seed, "code"))

    def start(self, experiment: Experiment, workers: Workers) -> CodedLoop:
        """Return the loop at the initial model."""
        return CodedLoop(self, experiment, workers)


class CodedLoop:
    """The server state and the code."""

    def __init__(self, protocol: Coded, experiment: Experiment, workers: Workers) -> None:
        assert isinstance(experiment.algorithm, CodedAlgorithm)
        self.experiment, self.workers, self.algorithm = experiment, workers, experiment.algorithm
        self.held = protocol.assignment(experiment)
        machines = self.held.shape[1]
        self.waited = max(1, machines - int(protocol.stragglers * machines))
        self.samples = self.held.T @ experiment.task.sizes
        self.server = self.algorithm.server_init(experiment.task.initial(experiment.seed))
        self.simulated = 0.0

    def round(self, r: int) -> RoundReport:
        """Wait for the fastest machines, decode and update."""
        e = self.experiment
        began = perf_counter()
        broadcast = self.algorithm.broadcast(self.server)
        bytes_down = bytes_of(broadcast)
        machines = self.held.shape[1]
        took = np.array([e.clock.duration(m, r, 1, bytes_down, bytes_down, e.seed) for m in range(machines)])
        order = np.lexsort((generator(e.seed, "tie", r).permutation(machines), took))
        responded = np.zeros(machines, dtype=bool)
        responded[order[:self.waited]] = True
        decoded = self.algorithm.decode(self.held, responded)
        # A machine counts with all its samples: n_e * mean gradient is the sum over its blocks.
        scale = float(self.samples.mean())
        weights = decoded * self.samples / scale
        ids = [int(m) for m in np.flatnonzero(responded)]
        work = Work(r, r, broadcast, ids, [float(weights[m]) for m in ids], e.plan(r))
        reduced = self.workers.map_reduce(work)
        worked = perf_counter()
        mean = mean_of(reduced, self.algorithm, float(e.task.sizes.sum()) / scale, e.pipeline)
        info = RoundInfo(r, e.rounds, len(ids), machines, e.schedule.server_factor(r, e.rounds))
        self.server = self.algorithm.server_update(self.server, mean, info)
        self.simulated += float(took[order[self.waited - 1]])
        alpha = self.held @ np.where(responded, decoded, 0.0)
        return RoundReport(list(range(machines)), reduced.records, bytes_down * machines,
                           sum(record.bytes_up for record in reduced.records),
                           {"work": worked - began, "update": perf_counter() - worked}, self.simulated,
                           digest(tree_flat(self.server)), {"decoding_error": float(((alpha - 1) ** 2).mean())})

    def model(self) -> Vec:
        """Return the algorithm's present model [P]."""
        return self.algorithm.model(self.server)

    def states(self) -> list[tuple[int, int]]:
        """Machines keep no state."""
        return []

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the server state and the clock."""
        return dict(tree_flat(self.server)), {"simulated": self.simulated}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        self.server = tree_like(self.server, tensors)
        self.simulated = float(meta["simulated"])
