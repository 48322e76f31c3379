"""Asynchronous arrivals: the server reacts to each update as it comes.

``cohort`` clients are always at work. A client that replies is replaced by another, which starts
from the model of that moment; a *round* is one server update. Arrivals at one and the same time are
all taken before anybody is replaced, so with equal speeds and a buffer of the cohort's size the
rounds are synchronous ones. A client whose update is refused sends nothing, and is replaced at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any, ClassVar

from torch import Tensor

from ..contracts import ArrivalInfo, AsyncServerAlgorithm, RoundInfo, Task, Vec
from ..errors import ClientError, ConfigError, FedlearnError
from ..experiment import Experiment, RoundReport
from ..policies.weighting import UniformWeighting
from ..seeds import generator
from ..vectors import digest, tree_flat, tree_like
from ..work import SUMS, Record, Reduced, Reply, Work, Workers, bytes_of
from .refused import Refused
from .synchronous import mean_of

TRIES = 100     # updates that may be refused in a round, or ten for each client at work, where that is more


@dataclass(frozen=True)
class Asynchronous:
    """The server updates after every ``algorithm.buffer`` arrivals."""

    kind: ClassVar[type] = AsyncServerAlgorithm
    verb: ClassVar[str] = "submit"

    def check(self, experiment: Experiment) -> None:
        """Refuse a weighting by samples, for staleness weights here, and sampling by rounds."""
        if experiment.sampling.name not in ("uniform", "proportional"):
            raise ConfigError("sampling", experiment.sampling.name,
                              "uniform or proportional with protocol=asynchronous", "Clients are drawn one at a time.")
        if not isinstance(experiment.weighting, UniformWeighting):
            raise ConfigError("weighting", experiment.weighting.name, "uniform with protocol=asynchronous",
                              "The algorithm weights arrivals by their staleness.")

    def prepare(self, experiment: Experiment) -> Task:
        """Return the task as it is."""
        return experiment.task

    def start(self, experiment: Experiment, workers: Workers) -> AsynchronousLoop:
        """Return the loop with nobody at work yet."""
        return AsynchronousLoop(experiment, workers)


class AsynchronousLoop:
    """The server state and its version; the replies under way stay with the workers."""

    def __init__(self, experiment: Experiment, workers: Workers) -> None:
        assert isinstance(experiment.algorithm, AsyncServerAlgorithm)
        self.experiment, self.workers, self.algorithm = experiment, workers, experiment.algorithm
        self.server = self.algorithm.server_init(experiment.task.initial(experiment.seed))
        self.accepted_versions: dict[int, int] = {}
        self.now, self.sent = 0.0, 0
        self.busy: set[int] = set()
        self.refused = Refused(experiment.on_bad_update)

    def round(self, r: int) -> RoundReport:
        """Take arrivals until the buffer is full, then update."""
        e = self.experiment
        began = perf_counter()
        total = SUMS[e.reduce]()
        cohort: list[int] = []
        records: list[Record] = []
        stale: list[int] = []
        left_out: list[ClientError] = []
        down = up = 0
        while len(records) < self.algorithm.buffer:
            under_way = self.workers.pending()
            if not (under_way and under_way[0].now == self.now):
                down += self._send_out(r, cohort, left_out)
            reply = self.workers.next()
            self.now = reply.now
            client, staleness = reply.record.client, r - reply.work.round
            self.busy.discard(client)
            up += reply.record.bytes_up
            weight = self.algorithm.arrival_weight(ArrivalInfo(client, staleness, r))
            if weight == 0:
                continue
            weights = {name: 1.0 if name in self.algorithm.unweighted else weight for name in reply.msg}
            try:
                total.add(reply.msg, weights, client, r)
            except ClientError as error:    # the sum has no room left for it
                self._leave_out(error, r, left_out)
                continue
            records.append(replace(reply.record, weight=weight))
            stale.append(staleness)
            if reply.record.state:
                self.accepted_versions[client] = reply.work.key
        worked = perf_counter()
        mean = mean_of(Reduced(total, records), self.algorithm, float(self.algorithm.buffer), e.pipeline)
        info = RoundInfo(r, e.rounds, len(records), len(e.task.sizes), e.schedule.server_factor(r, e.rounds),
                         [record.client for record in records], staleness=stale)
        self.server = self.algorithm.server_update(self.server, mean, info)
        return RoundReport(cohort, records, down, up, {"work": worked - began, "update": perf_counter() - worked},
                           self.now, digest(tree_flat(self.server)), {"staleness": sum(stale) / len(records)}, left_out)

    def _send_out(self, r: int, cohort: list[int], left_out: list[ClientError]) -> int:
        """Fill the free places from the present model; return the bytes sent."""
        e, clients = self.experiment, len(self.experiment.task.sizes)
        broadcast = self.algorithm.broadcast(self.server)
        sent = 0
        while len(self.busy) < min(e.clients_at_a_time, clients - self.refused.dropped):
            rng = generator(e.seed, "sampling", self.sent)
            ids, _ = e.sampling.cohort(e.task.sizes, min(len(self.busy) + self.refused.dropped + 1, clients), rng,
                                       self.sent)
            # Of one more client than are busy at least one is free; draws with replacement may miss it.
            free = [m for m in map(int, rng.permutation(ids)) if m not in self.busy and self.refused.asked(m)]
            if free:
                client = free[0]
                held = self.accepted_versions.get(client)
                versions = {} if held is None else {client: held}
                cohort.append(client)
                sent += bytes_of(broadcast)
                try:
                    self.workers.submit(Work(r, self.sent, broadcast, [client], [1.0], e.plan(r), versions))
                    self.busy.add(client)
                except ClientError as error:
                    self._leave_out(error, r, left_out)
            self.sent += 1
        return sent

    def _leave_out(self, error: ClientError, r: int, left_out: list[ClientError]) -> None:
        """Go on without an update, if that is the policy and there are others."""
        e = self.experiment
        if e.on_bad_update == "stop":
            raise error
        left_out.append(error)
        self.refused.note([error])
        self.refused.check(len(e.task.sizes), r)
        if len(left_out) > max(TRIES, 10 * e.clients_at_a_time):
            raise FedlearnError(f"round {r}: {len(left_out)} updates were refused, and too few accepted to go on "
                                f"(on_bad_update={e.on_bad_update}); the last one: {error}") from error

    def model(self) -> Vec:
        """Return the algorithm's present model [P]."""
        return self.algorithm.model(self.server)

    def states(self) -> list[tuple[int, int]]:
        """Return the accepted states and those under way, of which each may be rejected yet."""
        under_way = {(r.record.client, r.work.key) for r in self.workers.pending() if r.record.state}
        return sorted(under_way | set(self.accepted_versions.items()))

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the server state and the replies under way, uploads included."""
        replies = self.workers.pending()
        tensors = {f"server.{name}": t for name, t in tree_flat(self.server).items()}
        for i, reply in enumerate(replies):
            tensors |= {f"reply.{i}.{name}": t for name, t in reply.msg.items()}
        under_way = [{"round": reply.work.round, "key": reply.work.key, "now": reply.now,
                      "record": asdict(reply.record)} for reply in replies]
        versions = {str(m): v for m, v in self.accepted_versions.items()}
        return tensors, {"now": self.now, "sent": self.sent, "versions": versions, "replies": under_way,
                         **self.refused.snapshot()}

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot: the replies under way arrive as they would have."""
        self.server = tree_like(self.server, {name.removeprefix("server."): t for name, t in tensors.items()})
        self.accepted_versions = {int(m): int(v) for m, v in meta["versions"].items()}
        self.now, self.sent = float(meta["now"]), int(meta["sent"])
        self.refused.restore(meta)
        replies = []
        for i, item in enumerate(meta["replies"]):
            start = f"reply.{i}."
            msg = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
            record = Record(**item["record"])
            work = Work(item["round"], item["key"], {}, [record.client], [1.0], self.experiment.local)
            replies.append(Reply(work, msg, record, float(item["now"])))
        self.busy = {reply.record.client for reply in replies}
        self.workers.put_back(replies, self.now)
