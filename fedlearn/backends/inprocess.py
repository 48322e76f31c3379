"""Everything in one process; asynchrony and delays on a virtual clock, exactly repeatable."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..contracts import MixInfo, Msg, PeerAlgorithm, Tree
from ..faults import at
from ..vectors import tree_map
from ..work import SUMS, Event, Exchange, Record, Reduced, Reply, Setup, Work, bytes_of
from ..worker.worker import Worker


@dataclass(frozen=True)
class InProcess:
    """Run all clients in the calling process, on one thread."""

    verbs: ClassVar[frozenset[str]] = frozenset({"map_reduce", "submit", "exchange"})

    def open(self, setup: Setup) -> InProcessWorkers:
        """Return the one worker of this process."""
        return InProcessWorkers(setup)

    def describe(self) -> str:
        """Say where work runs."""
        return "one process"


class InProcessWorkers:
    """One worker; replies to ``submit`` come back in the order of their virtual arrival."""

    rank = 0

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.worker = Worker(setup)
        self.now = 0.0
        self.queue: list[tuple[float, int, Reply]] = []
        self.states: dict[int, Tree] = {}

    def map_reduce(self, work: Work) -> Reduced:
        """Run all clients, one after another or stacked, and sum their uploads."""
        total = SUMS[self.setup.reduce]()
        at("receive", work.round)
        part = self.worker.reduce(work, work.clients, total)
        at("reduce", work.round)
        return Reduced(total, part.records, part.refused)

    def events(self) -> list[Event]:
        """Nothing happens to a process that would be there to tell of it."""
        return []

    def submit(self, work: Work) -> None:
        """Run the client at once; its reply arrives after its virtual duration."""
        ((client, msg, record),) = self.worker.replies(work, work.clients)
        took = self.setup.clock.duration(client, work.key, record.steps, bytes_of(work.broadcast),
                                         record.bytes_up, self.setup.seed)
        arrival = self.now + took
        kept = {name: v.clone() for name, v in msg.items()}
        heapq.heappush(self.queue, (arrival, work.key, Reply(work, kept, record, arrival)))

    def next(self) -> Reply:
        """Return the reply that arrives first and move the clock there."""
        self.now, _, reply = heapq.heappop(self.queue)
        return reply

    def pending(self) -> Sequence[Reply]:
        """Return the replies under way, in the order of their arrival."""
        return [reply for _, _, reply in sorted(self.queue, key=lambda item: item[:2])]

    def put_back(self, replies: Sequence[Reply], now: float) -> None:
        """Put replies under way again and set the clock."""
        self.now = now
        self.queue = [(reply.now, reply.work.key, reply) for reply in replies]
        heapq.heapify(self.queue)

    def exchange(self, exchange: Exchange) -> Sequence[Record]:
        """Let every node work, then mix all messages of the round at once."""
        algorithm = self.setup.algorithm
        assert isinstance(algorithm, PeerAlgorithm)
        work, records = exchange.work, []
        for node in work.clients:
            self.states[node], record = self.worker.peer(algorithm, work, node, self.states[node])
            records.append(record)
        # Every node mixes what was sent before anybody mixed.
        sent = {node: tree_map(torch.clone, dict(algorithm.outgoing(self.states[node]))) for node in work.clients}
        for node in work.clients:
            heard = [sent[node], *(sent[j] for j in exchange.neighbours[node])]
            inbox = {name: torch.stack([msg[name] for msg in heard]) for name in heard[0]}
            info = MixInfo(work.round, node, exchange.weights[node])
            self.states[node] = algorithm.mix(self.states[node], inbox, info)
        return records

    def nodes(self) -> dict[int, Tree]:
        """Return the states of all nodes."""
        return self.states

    def set_nodes(self, states: Mapping[int, Tree]) -> None:
        """Replace the states of all nodes."""
        self.states = dict(states)

    def commit(self, states: Sequence[tuple[int, int]], keep: Sequence[tuple[int, int]] | None = None) -> None:
        """Write these client states to the run's folder; given ``keep``, delete all but these and those."""
        if self.worker.states is not None:
            self.worker.states.flush(states)
            if keep is not None:
                self.worker.states.prune([*states, *keep])

    def serve(self) -> Msg:
        """There is nobody to serve: this process is the coordinator."""
        return {}

    def close(self, final: Msg | None = None) -> None:
        """Nothing runs outside this process."""
