"""What an algorithm promises: the contracts that its kind is written to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from .problem import LocalPlan, Msg, Oracle, Task, Tree, Vec


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Where a local step stands.

    ``k`` is the step (from 0; equal to ``steps`` in ``local_finish``), ``steps`` the number K of
    local steps of this client in this round: an int alone, a tensor [clients, 1] in a stack.
    ``lr_factor`` multiplies the algorithm's own client step size (the schedule's value here). ``t`` counts
    local steps from 0 over all rounds, where all clients take the same number of them. ``lr_total`` is the
    sum of the ``lr_factor`` of the client's steps in this round before this one.
    """

    round: int
    k: int
    steps: int | Tensor
    lr_factor: float = 1.0
    t: int = 0
    lr_total: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """What the server knows when it updates.

    ``accepted`` replies went into the mean, out of ``population`` clients; ``lr_factor``
    multiplies the server step size where the schedule is asked to; ``clients`` are the ids of the accepted, in
    the order in which an ``individual`` algorithm sees their uploads. ``client_factor`` is the clients' factor at
    the first step of the round, for a server that takes the step in their place. ``local`` is how much they
    worked, where that is known. ``weights`` are those of the uploads of ``clients`` in the mean; they add up to 1,
    except where the weighting sets its denominator. ``staleness`` is that of each of ``clients`` where the server
    is asynchronous; elsewhere nobody is stale.
    """

    round: int
    rounds: int
    accepted: int
    population: int
    lr_factor: float = 1.0
    clients: Sequence[int] = ()
    client_factor: float = 1.0
    local: LocalPlan | None = None
    weights: Sequence[float] = ()
    staleness: Sequence[int] = ()

    @property
    def participation(self) -> float:
        """The accepted share of all clients, |S|/N."""
        return self.accepted / self.population


@dataclass(frozen=True, slots=True)
class ArrivalInfo:
    """An update that reached an asynchronous server.

    ``staleness`` counts the server versions published between the model that the client started
    from and the present one.
    """

    client: int
    staleness: int
    version: int


class ServerState(NamedTuple):
    """The server state of algorithms that keep nothing but the model, x [P]."""

    x: Vec


class ServerAlgorithm(ABC):
    """Periodic averaging, adaptive server updates and everything else that has a server.

    Of the client's work only the worker calls ``local_*``, in this order: ``local_init``, K times
    ``local_step``, ``local_finish``. ``y`` belongs to the client and may be changed in place; ``b``
    and ``c`` must not be. Uploads are **differences** from the broadcast (sign: ``dx = y - x``).
    No randomness, no ``.item()``, no data-dependent ``if`` in ``local_*``.

    What it needs of the framework, an algorithm says in class variables. ``unweighted`` names the uploads whose
    mean over the accepted clients is always the plain one, whatever the weighting (a control variate's difference,
    say). ``coordinatewise`` says that ``server_update`` treats every coordinate by itself, so that it may be called
    for pieces of the model; it is not inherited, since a subclass may do otherwise. ``equal_steps``: all clients
    take the same number of local steps (``local.steps``). ``everybody``: all clients take part in every round.
    ``local_sgd``: its local step is ``y - lr * grad(y)`` and nothing more, so that another optimiser may take its
    place. ``hessians``: it calls ``oracle.hvp``; ``directions``: it calls ``oracle.direction``. ``individual``:
    ``server_update`` gets every accepted upload, [accepted, P] in the order of the clients' ids, instead of their
    mean; the server then holds as many models as clients take part. ``alone``: one machine does all the work, and
    nothing travels (``sampling=one``). ``horizon``: what it does depends on how many rounds there are.
    ``unstackable`` says why its clients have to work one after another, if they have to; ``unsteady``: a client's
    last bits depend on who else is in its stack, so that none is stacked unasked. ``representations``: it
    calls ``oracle.grad_of``.
    """

    unweighted: ClassVar[frozenset[str]] = frozenset()
    coordinatewise: ClassVar[bool] = False
    equal_steps: ClassVar[bool] = False
    everybody: ClassVar[bool] = False
    local_sgd: ClassVar[bool] = False
    hessians: ClassVar[bool] = False
    directions: ClassVar[bool] = False
    individual: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    horizon: ClassVar[bool] = False
    unstackable: ClassVar[str] = ""
    unsteady: ClassVar[bool] = False
    representations: ClassVar[bool] = False

    @property
    def prelude(self) -> ServerAlgorithm | None:
        """What the cohort does before the round proper, as an algorithm of the same server state; None: nothing.

        Its clients take one local step, on all their data, and keep no state. What it broadcasts the clients
        still have in the round proper.
        """
        return None

    def server_init(self, x0: Vec) -> Tree:
        """Return the first server state for the initial model x0 [P]."""
        return ServerState(x0)

    def client_init(self, x0: Vec) -> Tree:
        """Return a client's first persistent state; ``()`` for algorithms that keep none."""
        return ()

    def broadcast(self, s: Tree) -> Msg:
        """Return what every client of the round receives."""
        return {"x": s.x}

    def local_init(self, b: Msg, c: Tree) -> Tree:
        """Return what the client works on; by default its own copy of the broadcast model."""
        return b["x"].clone()

    @abstractmethod
    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        """Return y after one local step."""

    def local_finish(self, y: Tree, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        """Return the upload and the client's next persistent state; ``y`` is not used again."""
        return {"dx": y.sub_(b["x"])}, c

    @abstractmethod
    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> Tree:
        """Return the server state after the weighted mean of the accepted uploads arrived."""

    def model(self, s: Tree) -> Vec:
        """Return the model [P] that is evaluated and saved."""
        return s.x

    def iterate(self, y: Tree) -> Vec:
        """Return the client's present model, [..., P], within what it works on."""
        return y if isinstance(y, Tensor) else y[0]

    def plan(self, s: Tree, local: LocalPlan) -> LocalPlan:
        """Return how much clients are to work in the next round, given what the policies say."""
        return local

    def metrics(self, s: Tree) -> dict[str, float]:
        """Return what of the server state a user would like to see after a round, by name."""
        return {}


class AsyncServerAlgorithm(ServerAlgorithm):
    """A server that reacts to arriving updates: after ``buffer`` of them it updates.

    The buffered mean is sum_i w_i upload_i / ``buffer``, w_i the weights by arrival: plain uploads
    keep their scale, and ``buffer=1`` reacts to each arrival.
    """

    buffer: int

    @abstractmethod
    def arrival_weight(self, info: ArrivalInfo) -> float:
        """Return the weight of an arriving update; 0 rejects it."""


class CodedAlgorithm(ServerAlgorithm):
    """A server that waits for the fastest machines and decodes from what they sent.

    A machine's upload must be *linear* in its data (a mean of gradients over it); the protocol hands
    ``server_update`` the mean  sum_e w_e n_e upload_e / n  with the decoded weights w_e.
    """

    @abstractmethod
    def assignment(self, blocks: int, rng: np.random.Generator) -> np.ndarray:
        """Return the 0/1 matrix A [blocks, machines]: which machine holds which data block."""

    @abstractmethod
    def decode(self, assignment: np.ndarray, responded: np.ndarray) -> np.ndarray:
        """Return the weights w [machines] for the machines that responded (bool [machines])."""


@dataclass(frozen=True, slots=True)
class MixInfo:
    """Where a mixing step stands: ``weights`` [neighbours + 1] belong to the rows of the inbox."""

    round: int
    node: int
    weights: Tensor


class PeerAlgorithm(ABC):
    """No server: every node trains and exchanges with its neighbours on a graph."""

    @abstractmethod
    def node_init(self, x0: Vec) -> Tree:
        """Return a node's first state."""

    @abstractmethod
    def local_step(self, s: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        """Return the node's state after one local step (in place is welcome)."""

    @abstractmethod
    def outgoing(self, s: Tree) -> Msg:
        """Return what the node sends to each neighbour."""

    @abstractmethod
    def mix(self, s: Tree, inbox: Msg, info: MixInfo) -> Tree:
        """Return the state after the exchange.

        Each inbox vector is [neighbours + 1, P]: row 0 is the node's own message, the others those
        of its neighbours in the order of their ids.
        """

    @abstractmethod
    def model(self, s: Tree) -> Vec:
        """Return the node's model [P]; their average over the nodes is evaluated and saved."""


class Stage(ABC):
    """A stage of the pipeline between a client and the server: both halves in one place.

    Applied in the pipeline's order on the client, and undone in the opposite order on the server,
    which sees only the mean of the uploads.
    """

    @abstractmethod
    def encode(self, msg: Msg, client: int, round: int) -> Msg:
        """Return what is sent instead of ``msg`` (the client half)."""

    def decode(self, mean: Msg) -> Msg:
        """Return what the server makes of the mean of what was sent (the server half)."""
        return mean


class Modifier:
    """Something that combines with any algorithm, or with any task: it puts another one around it.

    Modifiers are applied in their order, the first one innermost.
    """

    def around(self, algorithm: ServerAlgorithm) -> ServerAlgorithm:
        """Return the algorithm that runs instead."""
        return algorithm

    def on(self, task: Task) -> Task:
        """Return the task that is solved instead."""
        return task
