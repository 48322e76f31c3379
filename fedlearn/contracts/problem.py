"""What an algorithm works on: the stochastic oracle, the client's data behind it, and the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

Vec = Tensor
Msg = Mapping[str, Vec]
Tree = Any
Objective = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]


class MiniBatchOracle(Protocol):
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

    def full_value(self, x: Vec) -> Tensor:
        """Return the client's whole local objective at x; optional: an oracle may lack it."""


class Oracle(MiniBatchOracle, Protocol):
    """The oracle as algorithms see it: that of the mini-batch, and what the worker adds."""

    def direction(self, x: Vec) -> Vec:
        """Return a random unit vector [..., P], uniform on the sphere, one and the same for one mini-batch.

        Only an algorithm with ``directions`` has it.
        """

    def grad_of(self, x: Vec, others: Sequence[Vec], objective: Objective) -> Vec:
        """Return the gradient at x of ``objective(loss, z, zs)``, a scalar.

        ``loss`` is the mini-batch loss at x, z [batch, ..., features] what the network makes of the samples before
        its last layer, ``zs`` the same at each of ``others``, as constants. Only an algorithm with
        ``representations`` has it.
        """


class LocalPlan(Protocol):
    """How much a client works in a round: count of steps and size of batches.

    ``before`` is how many local steps a client has had in the rounds before, if it took part in all; 0 where
    clients take different numbers of steps. ``round`` counts from 0. ``lr_factor`` multiplies the clients' step
    sizes besides the schedule, as larger batches may ask for.
    """

    @property
    def before(self) -> int:
        """The local steps of the rounds before."""

    @property
    def round(self) -> int:
        """The round."""

    @property
    def lr_factor(self) -> float:
        """The factor of the clients' step sizes."""

    def steps_for(self, samples: int) -> int:
        """Return K for a client with so many samples."""

    def batch_for(self, samples: int) -> int:
        """Return the size of a full mini-batch for a client with so many samples."""


class ClientOracle(MiniBatchOracle, Protocol):
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
    it can do so in another thread. It refuses, with a ConfigError, what it cannot do. And it may have
    ``sample_losses(client, x) -> Tensor``: the losses [n] of a client's samples at the model x [P].
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
