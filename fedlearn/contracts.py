"""The contracts: what an algorithm, an oracle, a task and a backend promise one another.

An algorithm is one frozen dataclass in one file that reads like its paper. Its fields are its
hyper-parameters; its methods are small and pure: no I/O, no random numbers, no knowledge of
processes. The framework owns every loop, every random draw and every message.

Shapes: a model is the **last** dimension of a tensor. A client alone works on [P], a stack of
clients on [clients, P]; the same code serves both by plain broadcasting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from torch import Tensor

Vec = Tensor
Msg = Mapping[str, Vec]
Tree = Any


class Oracle(Protocol):
    """The stochastic oracle of the papers, on the current mini-batch of the current client(s).

    A tensor that it returns is valid **until its next call**: an algorithm that keeps one clones it.
    The argument is never changed. Shapes: x and v [..., P]; gradients [..., P]; values [..., 1].
    """

    def grad(self, x: Vec) -> Vec:
        """Return the gradient of the mini-batch loss at x."""

    def value(self, x: Vec) -> Tensor:
        """Return the mini-batch loss at x."""

    def hvp(self, x: Vec, v: Vec) -> Vec:
        """Return the Hessian of the mini-batch loss at x times v."""

    def full_grad(self, x: Vec) -> Vec:
        """Return the gradient of the client's whole local objective at x."""


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Where a local step stands.

    ``k`` is the step (from 0; equal to ``steps`` in ``local_finish``), ``steps`` the number K of
    local steps of this client in this round: an int alone, a tensor [clients, 1] in a stack.
    ``lr_factor`` multiplies the algorithm's own client step size (the schedule's value here).
    """

    round: int
    k: int
    steps: int | Tensor
    lr_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """What the server knows when it updates.

    ``accepted`` replies went into the mean, out of ``population`` clients; ``lr_factor``
    multiplies the server step size where the schedule is asked to.
    """

    round: int
    rounds: int
    accepted: int
    population: int
    lr_factor: float = 1.0

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

    ``unweighted`` names the uploads whose mean over the accepted clients is always the plain one,
    whatever the weighting (a control variate's difference, say). ``coordinatewise`` says that
    ``server_update`` treats every coordinate by itself, so that it may be called for pieces of the model;
    it is not inherited, since a subclass may do otherwise.
    """

    unweighted: ClassVar[frozenset[str]] = frozenset()
    coordinatewise: ClassVar[bool] = False

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


class LocalPlan(Protocol):
    """How much a client works in a round: count of steps and size of batches."""

    def steps_for(self, samples: int) -> int:
        """Return K for a client with so many samples."""

    def batch_for(self, samples: int) -> int:
        """Return the size of a full mini-batch for a client with so many samples."""


class ClientOracle(Oracle, Protocol):
    """An oracle as the worker drives it: first whose data, then which mini-batch.

    ``stacks`` says whether ``enter`` takes several clients at once. ``loss`` is the sum over the
    ``calls`` of ``grad`` since ``enter`` of the mini-batch loss (for the metrics only). An oracle may
    have ``expect(clients, draws)``, to gather ahead for clients that will be entered one by one, and
    ``pays_to_stack(batch)``, which says whether stacks are quicker.
    """

    stacks: bool
    calls: int

    @property
    def loss(self) -> Tensor:
        """The sum of the mini-batch losses, [clients]."""

    def describe(self) -> str:
        """Say in one line what this oracle is, for the run's log."""

    def room(self, batch: int) -> int:
        """Return the most clients of a stack, of mini-batches of at most ``batch`` samples: it may pad to that."""

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client, or of a stack of clients; resets ``loss``, ``calls``.

        ``draws`` are, where known, all draws that ``at`` will get, by client: an oracle may gather ahead.
        """

    def at(self, draws: Sequence[Any]) -> None:
        """Set the current mini-batch: one draw per client still in the stack (a leading part)."""


class Task(Protocol):
    """A model, the clients' data, a loss and an evaluation: the problem that is solved.

    ``sizes`` is int64 [clients], the samples of each client. A task may also have
    ``evaluator(samples: int | None, rng: np.random.Generator) -> Task``: what evaluates on so many of its
    test samples, drawn with ``rng`` (None: on all), and shares nothing that changes with the task, so that
    it can do so in another thread. It refuses, with a ConfigError, what it cannot do.
    """

    sizes: np.ndarray

    def initial(self, seed: int) -> Vec:
        """Return the initial model [P]."""

    def oracle(self, kind: str = "auto") -> ClientOracle:
        """Return a new oracle of the asked kind, for one worker."""

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Any]:
        """Return the client's K mini-batch draws of one round, from its keyed generator."""

    def evaluate(self, x: Vec) -> dict[str, float]:
        """Return the test metrics at the model x [P], e.g. ``{"loss": ..., "accuracy": ...}``.

        ``samples`` among them is the number of test samples that the others stand on.
        """
