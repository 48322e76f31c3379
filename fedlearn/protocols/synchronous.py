"""Synchronous rounds: sample, broadcast, local work, reduce, server update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..contracts import (
    LocalPlan,
    Msg,
    RoundInfo,
    ServerAlgorithm,
    Stage,
    Task,
    Tree,
    Vec,
)
from ..experiment import Experiment, RoundReport
from ..policies.local_work import LocalWork
from ..policies.weighting import Weights
from ..reducers.side_by_side import rows_of
from ..seeds import generator
from ..vectors import digest, tree_flat, tree_like, tree_map
from ..work import Record, Reduced, Work, Workers, bytes_of

ONCE = LocalWork(steps=1, batch_size=1)  # one step, whose mini-batch a prelude does not look at
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


class Prelude(NamedTuple):
    """What went to and fro before a round proper: the vectors and bytes down, and the bytes up by client."""

    broadcast: Msg
    down: int
    up: Mapping[int, int]


class SynchronousLoop:
    """The server state and, by client, the version of its accepted state."""

    def __init__(self, experiment: Experiment, workers: Workers) -> None:
        assert isinstance(experiment.algorithm, ServerAlgorithm)
        self.experiment, self.workers, self.algorithm = experiment, workers, experiment.algorithm
        self.sizes = experiment.task.sizes
        self.by_loss = getattr(experiment.sampling, "by_loss", False)
        self.total = int(self.sizes.sum())
        self.server = apart(self.algorithm.server_init(experiment.task.initial(experiment.seed).clone()))
        self.accepted_versions: dict[int, int] = {}
        self.last: Sequence[int] = ()    # cohort, whose older states workers may forget
        self.losses: dict[int, float] = {}  # of clients' last rounds, where the sampling goes by them
        self.simulated = 0.0

    def round(self, r: int) -> RoundReport:
        """Advance by one round."""
        e = self.experiment
        began = perf_counter()
        rng = generator(e.seed, "sampling", r)
        sampling = e.sampling.knowing(self.losses, e.rounds) if self.by_loss else e.sampling
        ids, counts = sampling.cohort(self.sizes, e.clients_at_a_time, rng, r)
        planned = e.weighting.weights(ids, counts, self.sizes[ids], self.total, len(self.sizes))
        weights, fixed = planned
        cohort = [int(m) for m in ids]
        before = self._prelude(r, cohort, planned)
        # Who took part in the prelude still has what it broadcast.
        broadcast = {**before.broadcast, **self.algorithm.broadcast(self.server)}
        plan = self.algorithm.plan(self.server, e.plan(r))
        work = Work(r, r, broadcast, cohort, [float(w) for w in weights], plan, self._versions(cohort))
        reduced = self.workers.map_reduce(work)
        worked = perf_counter()
        records = sorted(reduced.records, key=lambda record: record.client)
        info = self._info(r, records, plan, fixed)
        self.server = updated(self.server, reduced, self.algorithm, fixed, e.pipeline, info)
        # Only now, with every reply accepted, do the clients' new states count.
        self.accepted_versions |= {record.client: r for record in records if record.state}
        self.last = cohort
        if self.by_loss:
            self.losses |= {record.client: record.loss for record in records}
        down = bytes_of({name: v for name, v in broadcast.items() if name not in before.broadcast})
        if not e.sampling.travels:
            down, records = 0, [replace(record, bytes_up=0) for record in records]
        self.simulated += max(e.clock.duration(record.client, r, record.steps, down, record.bytes_up, e.seed)
                              for record in records)
        if before.up and e.sampling.travels:
            down += before.down
            records = [replace(record, bytes_up=record.bytes_up + before.up[record.client]) for record in records]
        state = digest(tree_flat(self.server))
        return RoundReport(cohort, records, down * len(cohort), sum(record.bytes_up for record in records),
                           {"work": worked - began, "update": perf_counter() - worked}, self.simulated, state,
                           self.algorithm.metrics(self.server))

    def _prelude(self, r: int, cohort: Sequence[int], weights: Weights) -> Prelude:
        """Let the cohort do what the algorithm asks for before the round proper, and update the server by it."""
        algorithm = self.algorithm.prelude
        if algorithm is None:
            return Prelude({}, 0, {})
        broadcast = algorithm.broadcast(self.server)
        reduced = self.workers.map_reduce(Work(r, r, broadcast, cohort, [float(w) for w in weights.w], ONCE,
                                               self._versions(cohort), prelude=True))
        info = self._info(r, reduced.records, self.algorithm.plan(self.server, self.experiment.plan(r)),
                          weights.denominator)
        self.server = updated(self.server, reduced, algorithm, weights.denominator, self.experiment.pipeline, info)
        e, down, up = self.experiment, bytes_of(broadcast), {m.client: m.bytes_up for m in reduced.records}
        travels = int(e.sampling.travels)
        self.simulated += max(e.clock.duration(m, r, 1, travels * down, travels * up[m], e.seed) for m in up)
        return Prelude(broadcast, down, up)

    def _versions(self, cohort: Sequence[int]) -> dict[int, int]:
        return {m: self.accepted_versions[m] for m in (*cohort, *self.last) if m in self.accepted_versions}

    def _info(self, r: int, records: Sequence[Record], plan: LocalPlan, fixed: float | None) -> RoundInfo:
        e, t = self.experiment, plan.before
        weight = {record.client: record.weight for record in records}
        clients = sorted(weight)
        whole = sum(weight[m] for m in clients) if fixed is None else fixed
        factor = e.schedule.factor(r, e.rounds, 0, t) * plan.lr_factor
        return RoundInfo(r, e.rounds, len(clients), len(self.sizes), e.schedule.server_factor(r, e.rounds, t), clients,
                         factor, plan, [weight[m] / whole for m in clients])

    def model(self) -> Vec:
        """Return the algorithm's present model [P]; valid until the next round, which may update it in place."""
        return self.algorithm.model(self.server)

    def states(self) -> list[tuple[int, int]]:
        """Return the accepted state of every client that has one."""
        return sorted(self.accepted_versions.items())

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the server state, the state versions and the clock."""
        versions = {str(m): v for m, v in self.accepted_versions.items()}
        losses = {"losses": {str(m): loss for m, loss in self.losses.items()}} if self.by_loss else {}
        return dict(tree_flat(self.server)), {"versions": versions, "simulated": self.simulated, **losses}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        self.server = tree_like(self.server, tensors)
        self.accepted_versions = {int(m): int(v) for m, v in meta["versions"].items()}
        self.losses = {int(m): float(loss) for m, loss in meta.get("losses", {}).items()}
        self.simulated = float(meta["simulated"])


def mean_of(reduced: Reduced, algorithm: ServerAlgorithm, fixed: float | None, pipeline: Mapping[str, Stage]) -> Msg:
    """Return the mean of the uploads as the server sees it, after the pipeline's server halves.

    ``fixed`` is the denominator where the weighting sets one; else the accepted weights add up to it.
    """
    if algorithm.individual:
        assert reduced.sum.layout is not None
        side_by_side = reduced.sum.mean({name: 1.0 for name, _, _ in reduced.sum.layout.parts})
        rows = rows_of(side_by_side, len(reduced.records))
        each = [_decoded({name: v[i] for name, v in rows.items()}, pipeline) for i in range(len(reduced.records))]
        return {name: torch.stack([msg[name] for msg in each]) for name in each[0]}
    return _decoded(reduced.sum.mean(denominators(reduced, algorithm, fixed)), pipeline)


def _decoded(msg: Msg, pipeline: Mapping[str, Stage]) -> Msg:
    for stage in reversed(list(pipeline.values())):
        msg = stage.decode(msg)
    return msg


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
    by_coordinate = "coordinatewise" in vars(type(algorithm)) and algorithm.coordinatewise
    if not by_coordinate or decoded or len(sizes) > 1 or max(sizes) <= PIECE:
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
