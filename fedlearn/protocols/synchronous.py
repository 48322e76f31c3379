"""Synchronous rounds: sample, broadcast, local work, reduce, server update."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..contracts import LocalPlan, Msg, RoundInfo, ServerAlgorithm, Stage, Task, Tree, Vec
from ..errors import ClientError, ConfigError, LateReply
from ..experiment import Experiment, RoundReport
from ..policies.local_work import LocalWork
from ..policies.participation import Participation
from ..reducers.exact import ExactSum
from ..reducers.side_by_side import rows_of
from ..seeds import generator
from ..vectors import digest, tree_flat, tree_like, tree_map
from ..work import Record, Reduced, Work, Workers, bytes_of
from ..worker.uploads import at_the_end, expected
from .refused import Refused

log = logging.getLogger("fedlearn")

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


class Phase(NamedTuple):
    """What came of an exchange with clients, that of the prelude or of the round proper.

    ``worked`` are the clients that did, ``late`` those who did not reply in time, ``seconds`` the simulated ones that
    it took, ``down`` the bytes that all of them together were sent.
    """

    broadcast: Msg
    worked: Sequence[int]
    reduced: Reduced
    refused: Sequence[ClientError]
    late: Sequence[int]
    seconds: float
    down: int

    @property
    def records(self) -> list[Record]:
        """The records of the replies that are in the sum, in the order of the clients' ids."""
        return sorted(self.reduced.records, key=lambda record: record.client)


NOTHING = Phase({}, [], Reduced(ExactSum(), []), [], [], 0.0, 0)    # of a round without a prelude


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
        self.refused = Refused(experiment.on_bad_update)
        # Whether a round may be void after its prelude.
        self.lenient = experiment.on_bad_update != "stop" or experiment.participation != Participation()
        if experiment.participation.wall is not None:
            log.warning("participation.wall=%g: whose reply is late depends on how quick the machines are; this run's "
                        "hash is not the same elsewhere, nor after a resume", experiment.participation.wall)

    def round(self, r: int) -> RoundReport:
        """Advance by one round."""
        e, s = self.experiment, self.server
        began = perf_counter()
        self.refused.check(len(self.sizes), r)
        rng = generator(e.seed, "sampling", r)
        sampling = e.sampling.knowing(self.losses, e.rounds) if self.by_loss else e.sampling
        ids, counts = sampling.cohort(self.sizes, e.participation.asked(e.clients_at_a_time), rng, r)
        planned, fixed = e.weighting.weights(ids, counts, self.sizes[ids], self.total, len(self.sizes))
        weight = {int(m): float(w) for m, w in zip(ids, planned, strict=True)}
        cohort = [m for m in weight if self.refused.asked(m)]
        prelude, first = self.algorithm.prelude, NOTHING
        if prelude is not None:
            first = self._phase(r, prelude, s, {m: weight[m] for m in cohort}, ONCE)
            if not self._void(first):
                info = self._info(r, first.records, self.algorithm.plan(s, e.plan(r)), fixed)
                s = updated(s, first.reduced, prelude, fixed, e.pipeline, info, first.worked, self.lenient)
        # Who took part in the prelude still has what it broadcast.
        there = cohort if prelude is None else [record.client for record in first.records]
        plan, phase = self.algorithm.plan(s, e.plan(r)), NOTHING
        if prelude is None or not self._void(first):
            phase = self._phase(r, self.algorithm, s, {m: weight[m] for m in there}, plan, first)
        worked = perf_counter()
        records, void = phase.records, self._void(phase)
        up = sum(record.bytes_up for record in (*first.records, *records)) if e.sampling.travels else 0
        if void:
            records = []
        else:
            info = self._info(r, records, plan, fixed)
            self.server = updated(s, phase.reduced, self.algorithm, fixed, e.pipeline, info, phase.worked)
            # Only now, with every reply accepted, do the clients' new states count.
            self.accepted_versions |= {record.client: r for record in records if record.state}
        refused, late = [*first.refused, *phase.refused], [*first.late, *phase.late]
        self.refused.note(refused)
        self.last = cohort
        if self.by_loss:
            self.losses |= {record.client: record.loss for record in records}
        self.simulated += first.seconds + phase.seconds
        if prelude is not None or not e.sampling.travels:
            before = {record.client: record.bytes_up for record in first.records}
            records = [replace(record, bytes_up=record.bytes_up + before[record.client] if e.sampling.travels else 0)
                       for record in records]
        state = digest(tree_flat(self.server))
        return RoundReport(cohort, records, first.down + phase.down, up,
                           {"work": worked - began, "update": perf_counter() - worked}, self.simulated, state,
                           self.algorithm.metrics(self.server), refused, late, void)

    def _void(self, phase: Phase) -> bool:
        """Say whether too few replied."""
        return len(phase.reduced.records) < self.experiment.participation.least

    def _phase(self, r: int, algorithm: ServerAlgorithm, s: Tree, weight: Mapping[int, float], plan: LocalPlan,
               before: Phase = NOTHING) -> Phase:
        """Let clients work and return what came of it; they still have what they were sent ``before``."""
        e, prelude = self.experiment, algorithm is not self.algorithm
        broadcast = {**before.broadcast, **algorithm.broadcast(s)}
        travels = int(e.sampling.travels)
        down = travels * bytes_of({name: v for name, v in broadcast.items() if name not in before.broadcast})

        def took(client: int, steps: int, up: int) -> float:
            return e.clock.duration(client, r, steps, down, travels * up, e.seed)

        def foreseen(clients: Iterable[int]) -> dict[int, float]:
            up = self._bytes_up(algorithm, broadcast, plan, r)
            return {m: took(m, plan.steps_for(int(self.sizes[m])), up) for m in clients}

        asked = taken = list(weight)
        late: list[int] = []
        waited = None
        if e.participation.by_clock and asked:
            taken, late, waited = e.participation.take(foreseen(asked), e.clients_at_a_time, before.seconds)
        reduced = NOTHING.reduced
        if taken:
            reduced = self.workers.map_reduce(
                Work(r, r, broadcast, taken, [weight[m] for m in taken], plan, self._versions(taken), prelude,
                     e.participation.wall))
        refused = sorted((x for x in reduced.refused if not isinstance(x, LateReply)), key=lambda x: x.client)
        late = sorted([*late, *(x.client for x in reduced.refused if isinstance(x, LateReply))])
        if waited is None:
            times = [took(record.client, record.steps, record.bytes_up) for record in reduced.records]
            waited = max([*times, *(foreseen(x.client for x in refused).values() if refused else ())], default=0.0)
        return Phase(broadcast, taken, reduced, refused, late, waited, down * len(asked))

    def _bytes_up(self, algorithm: ServerAlgorithm, broadcast: Msg, plan: LocalPlan, r: int) -> int:
        """Return the bytes of an upload, found without any work; they may differ between rounds."""
        e, first = self.experiment, self.algorithm.client_init(self.algorithm.model(self.server))
        given = (algorithm, broadcast, first, list(e.pipeline.values()), 0,
                 at_the_end(plan, e.schedule, r, e.rounds, int(self.sizes[0])))
        try:
            return expected(*given).bytes
        except ConfigError:
            return expected(*given, stepped=False).bytes

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
        return dict(tree_flat(self.server)), {"versions": versions, "simulated": self.simulated, **losses,
                                              **self.refused.snapshot()}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        self.server = tree_like(self.server, tensors)
        self.accepted_versions = {int(m): int(v) for m, v in meta["versions"].items()}
        self.losses = {int(m): float(loss) for m, loss in meta.get("losses", {}).items()}
        self.simulated = float(meta["simulated"])
        self.refused.restore(meta)


def mean_of(reduced: Reduced, algorithm: ServerAlgorithm, fixed: float | None, pipeline: Mapping[str, Stage],
            worked: Sequence[int] = ()) -> Msg:
    """Return the mean of the uploads as the server sees it, after the pipeline's server halves.

    ``fixed`` is the denominator where the weighting sets one; else the accepted weights add up to it. An
    ``individual`` algorithm sees those of the accepted, of the clients that ``worked``.
    """
    if algorithm.individual:
        assert reduced.sum.layout is not None
        side_by_side = reduced.sum.mean({name: 1.0 for name, _, _ in reduced.sum.layout.parts})
        rows = rows_of(side_by_side, worked, [record.client for record in reduced.records])
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
            info: RoundInfo, worked: Sequence[int] = (), keep: bool = False) -> Tree:
    """Return the server state after a round; ``keep`` the one before as it is.

    A large model of a ``coordinatewise`` algorithm is updated piece by piece, in place: neither the mean nor any
    vector of the update is ever there as a whole, and pieces stay in the cache. The bits are the same.
    """
    assert reduced.sum.layout is not None
    sizes = {t.numel() for t in tree_flat(s).values()} | {numel for _, numel, _ in reduced.sum.layout.parts}
    decoded = any(type(stage).decode is not Stage.decode for stage in pipeline.values())
    by_coordinate = "coordinatewise" in vars(type(algorithm)) and algorithm.coordinatewise
    if keep or not by_coordinate or decoded or len(sizes) > 1 or max(sizes) <= PIECE:
        return algorithm.server_update(s, mean_of(reduced, algorithm, fixed, pipeline, worked), info)
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
