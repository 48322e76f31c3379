"""Synchronous rounds: sample, broadcast, local work, reduce, server update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contracts import (
    Msg,
    RoundInfo,
    ServerAlgorithm,
    Stage,
    Task,
    Tree,
    Vec,
)
from ..experiment import Experiment, RoundReport
from ..seeds import generator
from ..vectors import digest, tree_flat, tree_like, tree_map
from ..work import Record, Reduced, Work, Workers, bytes_of

PIECE = 1 << 17  # entries of a large model that are updated at a time


@dataclass(frozen=True)
class Synchronous:
    """Every round waits for its whole cohort."""

    kind: ClassVar[type] = ServerAlgorithm
    verb: ClassVar[str] = "map_reduce"

    def check(self, experiment: Experiment) -> None:
        """Refuse weights without their sampling."""
        experiment.weighting.check(experiment.sampling)

    def prepare(self, experiment: Experiment) -> Task:
        """Return the task as it is."""
        return experiment.task

    def start(self, experiment: Experiment, workers: Workers) -> SynchronousLoop:
        """Return the loop at the initial model."""
        return SynchronousLoop(experiment, workers)


class SynchronousLoop:
    """The server state and, by client, the version of its accepted state."""

    def __init__(self, experiment: Experiment, workers: Workers) -> None:
        assert isinstance(experiment.algorithm, ServerAlgorithm)
        self.experiment, self.workers, self.algorithm = experiment, workers, experiment.algorithm
        self.sizes = experiment.task.sizes
        self.total = int(self.sizes.sum())
        self.server = apart(self.algorithm.server_init(experiment.task.initial(experiment.seed).clone()))
        self.accepted_versions: dict[int, int] = {}
        self.simulated = 0.0

    def round(self, r: int) -> RoundReport:
        """Advance by one round."""
        e = self.experiment
        began = perf_counter()
        rng = generator(e.seed, "sampling", r)
        ids, counts = e.sampling.cohort(self.sizes, e.clients_at_a_time, rng, r)
        weights, fixed = e.weighting.weights(ids, counts, self.sizes[ids], self.total, len(self.sizes))
        cohort = [int(m) for m in ids]
        broadcast = self.algorithm.broadcast(self.server)
        versions = {m: self.accepted_versions[m] for m in cohort if m in self.accepted_versions}
        work = Work(r, r, broadcast, cohort, [float(w) for w in weights], e.local, versions)
        reduced = self.workers.map_reduce(work)
        worked = perf_counter()
        records = sorted(reduced.records, key=lambda record: record.client)
        info = RoundInfo(r, e.rounds, len(records), len(self.sizes), e.schedule.server_factor(r, e.rounds))
        self.server = updated(self.server, reduced, self.algorithm, fixed, e.pipeline, info)
        # Only now, with every reply accepted, do the clients' new states count.
        self.accepted_versions |= {record.client: r for record in records if record.state}
        down = bytes_of(broadcast)
        self.simulated += max(e.clock.duration(record.client, r, record.steps, down, record.bytes_up, e.seed)
                              for record in records)
        state = digest(tree_flat(self.server))
        return RoundReport(cohort, records, down * len(cohort), sum(record.bytes_up for record in records),
                           {"work": worked - began, "update": perf_counter() - worked}, self.simulated, state)

    def model(self) -> Vec:
        """Return the algorithm's present model [P]; valid until the next round, which may update it in place."""
        return self.algorithm.model(self.server)

    def states(self) -> list[tuple[int, int]]:
        """Return the accepted state of every client that has one."""
        return sorted(self.accepted_versions.items())

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the server state, the state versions and the clock."""
        versions = {str(m): v for m, v in self.accepted_versions.items()}
        return dict(tree_flat(self.server)), {"versions": versions, "simulated": self.simulated}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        self.server = tree_like(self.server, tensors)
        self.accepted_versions = {int(m): int(v) for m, v in meta["versions"].items()}
        self.simulated = float(meta["simulated"])


def mean_of(reduced: Reduced, algorithm: ServerAlgorithm, fixed: float | None, pipeline: Mapping[str, Stage]) -> Msg:
    """Return the mean of the uploads as the server sees it, after the pipeline's server halves.

    ``fixed`` is the denominator where the weighting sets one; else the accepted weights add up to it.
    """
    mean: Msg = reduced.sum.mean(denominators(reduced, algorithm, fixed))
    for stage in reversed(list(pipeline.values())):
        mean = stage.decode(mean)
    return mean


def denominators(reduced: Reduced, algorithm: ServerAlgorithm, fixed: float | None) -> dict[str, float]:
    """Return by name what the sum is to be divided by."""
    records: list[Record] = sorted(reduced.records, key=lambda record: record.client)
    weighted = sum(record.weight for record in records) if fixed is None else fixed
    assert reduced.sum.layout is not None
    return {name: len(records) if name in algorithm.unweighted else weighted
            for name, _, _ in reduced.sum.layout.parts}


def updated(s: Tree, reduced: Reduced, algorithm: ServerAlgorithm, fixed: float | None, pipeline: Mapping[str, Stage],
            info: RoundInfo) -> Tree:
    """Return the server state after a round.

    A large model of a ``coordinatewise`` algorithm is updated piece by piece, in place: neither the mean nor any
    vector of the update is ever there as a whole, and pieces stay in the cache. The bits are the same.
    """
    assert reduced.sum.layout is not None
    sizes = {t.numel() for t in tree_flat(s).values()} | {numel for _, numel, _ in reduced.sum.layout.parts}
    decoded = any(type(stage).decode is not Stage.decode for stage in pipeline.values())
    if not vars(type(algorithm)).get("coordinatewise") or decoded or len(sizes) > 1 or max(sizes) <= PIECE:
        return algorithm.server_update(s, mean_of(reduced, algorithm, fixed, pipeline), info)
    by = denominators(reduced, algorithm, fixed)
    reduced.sum.carry()
    for start in range(0, max(sizes), PIECE):
        part = slice(start, start + PIECE)
        before = tree_map(lambda t, part=part: t[part], s)
        # What it returns may hold a view of what is written over.
        after = tree_map(torch.clone, algorithm.server_update(before, reduced.sum.mean_of_part(by, part), info))
        tree_map(Tensor.copy_, before, after)
    return s


def apart(s: Tree) -> Tree:
    """Return a server state in which no two tensors share memory."""
    seen: set[int] = set()

    def alone(t: Tensor) -> Tensor:
        where = t.untyped_storage().data_ptr()
        if where in seen:
            return t.clone()
        seen.add(where)
        return t

    return tree_map(alone, s)
