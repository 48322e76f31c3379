"""What travels between protocols, backends and workers.

A *backend* is where work runs; opened with a ``Setup`` it gives ``Workers`` with up to three verbs:
``map_reduce`` (run these clients and sum their uploads), ``submit`` and ``next`` (run one client,
take whoever is done first) and ``exchange`` (every node works and mixes with its neighbours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from .contracts import LocalPlan, Msg, PeerAlgorithm, ServerAlgorithm, Stage, Task, Tree
from .errors import ClientError
from .faults import Faults
from .policies.clock import Clock
from .policies.schedule import Schedule
from .reducers.exact import ExactSum
from .reducers.fast import FastSum

Sum = ExactSum | FastSum
SUMS: dict[str, type[Sum]] = {"exact": ExactSum, "fast": FastSum}


@dataclass(frozen=True)
class Setup:
    """All that a worker needs for a whole run; sent to it once. It keeps ``state_memory`` MB of client states.

    With ``on_bad_update`` "stop" a bad update ends the round with its error; else it is left out, and named. An update
    whose norm exceeds ``max_update_norm`` is bad, too. ``faults`` are injected on purpose.
    """

    algorithm: ServerAlgorithm | PeerAlgorithm
    task: Task
    schedule: Schedule
    rounds: int
    clock: Clock
    seed: int = 0
    pipeline: Mapping[str, Stage] = field(default_factory=dict)
    reduce: str = "exact"
    oracle: str = "auto"
    precision: str = "float32"
    stack: bool = False
    states: Path | None = None
    threads: int = 1
    state_memory: int = 1024
    on_bad_update: str = "stop"
    max_update_norm: float | None = None
    faults: Faults | None = None


@dataclass(frozen=True)
class Work:
    """What the server asks for: ``clients`` work from ``broadcast`` in a round.

    ``weights`` go with the clients; ``versions`` names the client states to start from (clients
    without one start from ``client_init``), and may name others that count from now on. ``key`` distinguishes
    the random streams and the new state versions of this work; it is the round, except where the server does
    not work in rounds. With ``prelude`` the work is that of the algorithm's prelude. Clients that a worker has not
    finished ``deadline`` seconds after it got the work are late (None: never).
    """

    round: int
    key: int
    broadcast: Msg
    clients: Sequence[int]
    weights: Sequence[float]
    local: LocalPlan
    versions: Mapping[int, int] = field(default_factory=dict)
    prelude: bool = False
    deadline: float | None = None

    def algorithm_of(self, setup: Setup) -> ServerAlgorithm:
        """Return the algorithm whose local work this is."""
        algorithm = setup.algorithm
        assert isinstance(algorithm, ServerAlgorithm)
        if self.prelude:
            assert algorithm.prelude is not None
            return algorithm.prelude
        return algorithm


@dataclass(frozen=True)
class Record:
    """What is known of a client's reply besides its upload.

    ``loss`` is the mean mini-batch loss over its local steps, ``bytes_up`` the size of its upload,
    ``state`` whether it left a new persistent state.
    """

    client: int
    samples: int
    steps: int
    weight: float
    loss: float
    bytes_up: int
    state: bool


Event = dict[str, Any]   # with "event", what happened in words, "round" where there is one, and details


def bytes_of(msg: Msg) -> int:
    """Return the bytes that the vectors of a message take on the wire."""
    return sum(v.numel() * v.element_size() for v in msg.values())


def cost(sizes: Any, client: int, local: LocalPlan) -> int:
    """Return the samples that a client works through in a round: the measure for balancing."""
    n = int(sizes[client])
    return local.steps_for(n) * local.batch_for(n)


class Part(NamedTuple):
    """What a worker did of a work: the records of the replies that are in its sum, and what was left out and why."""

    records: list[Record]
    refused: list[ClientError]


@dataclass(frozen=True)
class Reduced:
    """The summed uploads of a round, the records of the replies that are in the sum, and what was left out of it."""

    sum: Sum
    records: Sequence[Record]
    refused: Sequence[ClientError] = ()


@dataclass(frozen=True)
class Reply:
    """One client's reply to ``submit``; ``now`` is the virtual time of its arrival in seconds."""

    work: Work
    msg: dict[str, Tensor]
    record: Record
    now: float


@dataclass(frozen=True)
class Exchange:
    """A round of gossip: every node works, then mixes along the graph.

    ``neighbours[i]`` are the nodes that node i hears, ``weights[i]`` [neighbours + 1] the mixing
    weights, its own first.
    """

    work: Work
    neighbours: Sequence[Sequence[int]]
    weights: Sequence[Tensor]


class Workers(Protocol):
    """An open backend; a backend that lacks a verb says so in its ``verbs``.

    ``rank`` is 0 for the coordinator. Where the backend's processes were started by somebody else
    (torchrun), the others open it too, and then ``serve`` until rank 0 closes.
    """

    rank: int

    def events(self) -> list[Event]:
        """Return what happened to the workers since the last call: who was lost, and replaced."""
        ...

    def serve(self) -> Msg:
        """Work for rank 0 until it closes, and return what it said last."""
        ...

    def map_reduce(self, work: Work) -> Reduced:
        """Run the work of all its clients and return the sum of their weighted uploads."""
        ...

    def submit(self, work: Work) -> None:
        """Start the work of its one client."""
        ...

    def next(self) -> Reply:
        """Return the reply that arrives first."""
        ...

    def pending(self) -> Sequence[Reply]:
        """Return the replies under way, for a checkpoint."""
        ...

    def put_back(self, replies: Sequence[Reply], now: float) -> None:
        """Put replies under way again, after a checkpoint was read."""
        ...

    def exchange(self, exchange: Exchange) -> Sequence[Record]:
        """Let every node work and mix; node states stay with the workers."""
        ...

    def nodes(self) -> dict[int, Tree]:
        """Return the states of all nodes."""
        ...

    def set_nodes(self, states: Mapping[int, Tree]) -> None:
        """Replace the states of all nodes."""
        ...

    def commit(self, states: Sequence[tuple[int, int]], keep: Sequence[tuple[int, int]] | None = None) -> None:
        """Bring these (client, version) states to disk; given ``keep``, delete all but these and those."""
        ...

    def close(self, final: Msg | None = None) -> None:
        """End the workers, telling them the final model where they wait for it; safe to call twice."""
        ...


class Backend(Protocol):
    """Where work runs: a frozen dataclass of settings."""

    verbs: ClassVar[frozenset[str]]

    def open(self, setup: Setup) -> Workers:
        """Start the workers.

        Raises:
            WorkerError: if they do not come up.
        """
        ...

    def describe(self) -> str:
        """Return in a few words what runs where, for the run's log."""
        ...
