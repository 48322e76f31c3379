"""Example curriculum: each client trains on its easy samples first, or on its hard ones.

S. Vahidian, S. Kadaveru, W. Baek, W. Wang, V. Kungurtsev, C. Chen, M. Shah, B. Lin, "When Do Curricula Work in
Federated Learning?", ICCV 2023 (the scoring by the global model).

    at the start of a client's round, at the model x that it received:
        l_i = loss(x; sample i), i = 1..n;   order: curr, l ascending; anti, descending; rand, shuffled
    then until K steps are done, with t of them done:
        take the first max(g(t), 32) samples of the order, and mini-batches of one shuffled pass over them

======  ========  =======  ===========================================================================
symbol  field     default  where the default comes from
======  ========  =======  ===========================================================================
        order     curr     the paper; none is the task as it is
g       pacing    linear   the paper: linear, quad, sqrt, step, exp or log
a       full      0.8      the paper: the share of a round's steps after which all samples are in
b       start     0.2      the paper: the share of the samples that is in at once
32      least     32       the authors' code
K, B    (local)            local.steps or local.epochs, and local.batch_size
======  ========  =======  ===========================================================================

``rand`` has the pacing, too, and is therefore not ``none``. Scoring costs a pass of inference over the client's data in
each round, in evaluation mode. It is a pure function of the model, the data and the client's stream, so that a client's
mini-batches are the same wherever it works.

Deviations: the samples are scored where the algorithm first asks its oracle about a mini-batch, which is the received
model for all but accelerated methods. A round has K steps exactly, where the paper's last pass may overshoot. Scoring
by the client's own last model, or by an expert, is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..contracts import ClientOracle, Modifier, Objective, Task, Vec
from ..draws import Draws
from ..errors import ConfigError, in_range, one_of
from ..pacing import Pacing
from ..seeds import generator
from .on_task import OnOracle, OnTask, Worded

ORDERS = ("curr", "anti", "rand", "none")


@dataclass(frozen=True)
class ExampleCurriculum(Modifier):
    """Let clients order their samples by their losses.

    Raises:
        ConfigError: if a field is out of range.
    """

    order: str = "curr"
    pacing: str = "linear"
    full: float = 0.8
    start: float = 0.2
    least: int = 32

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError("order", self.order, one_of(ORDERS, self.order))
        in_range("least", self.least, least=1, whole=True)
        Pacing(self.pacing, self.full, self.start)

    def on(self, task: Task) -> Task:
        if not callable(getattr(task, "sample_losses", None)):
            raise ConfigError("modifiers.example_curriculum", "ExampleCurriculum", "a task with sample_losses()",
                              f"The clients of {type(task).__name__} have no samples with losses of their own.")
        return task if self.order == "none" else OrderedTask(task, self)

    def mini_batches(self, losses: Tensor, worded: Worded) -> Draws:
        """Return the K mini-batches of a client's round, given the losses [n] of its samples."""
        rng, n, steps = generator(worded.word, "curriculum"), len(losses), len(worded)
        if self.order == "rand":
            order = rng.permutation(n)
        else:
            order = np.argsort(losses.numpy() * (1 if self.order == "curr" else -1), kind="stable")
        pacing = Pacing(self.pacing, self.full, self.start)
        passes: list[np.ndarray] = []
        sizes: list[int] = []
        while len(sizes) < steps:
            pool = order[:max(pacing.available(n, len(sizes), steps), self.least)]
            full, rest = divmod(len(pool), worded.batch)
            passes.append(rng.permutation(pool))
            sizes += [worded.batch] * full + [rest] * (rest > 0)
        return Draws(np.concatenate(passes)[:sum(sizes[:steps])], sizes[:steps])


@dataclass(frozen=True, eq=False)
class OrderedTask(OnTask):
    """A task whose clients see their samples in an order of their own."""

    rule: ExampleCurriculum

    def around(self, oracle: ClientOracle) -> ClientOracle:
        return OrderedOracle(oracle, self.rule, self.inner.sample_losses)   # type: ignore[attr-defined]

    def regroup(self, groups: Sequence[Sequence[int]]) -> Task:
        """Refuse: coded work is on whole blocks.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("modifiers.example_curriculum", "ExampleCurriculum", "none with protocol=coded",
                          "Its machines work on all samples of their blocks.")


class OrderedOracle(OnOracle):
    """An oracle that makes its own mini-batches once it knows the model by which samples are scored."""

    def __init__(self, oracle: ClientOracle, rule: ExampleCurriculum, losses: Callable[[int, Vec], Tensor]) -> None:
        super().__init__(oracle)
        self.rule, self.losses = rule, losses
        self.batches: list[Draws] = []
        self.waiting = False

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        return f"{self.inner.describe()} with samples in the order {self.rule.order}"

    def expect(self, clients: Sequence[int], draws: Sequence[Sequence[Any]]) -> None:
        """Do nothing: nobody knows the mini-batches before the losses."""

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client, or of a stack of clients."""
        super().enter(clients, None)
        self.worded = [d for d in draws or () if isinstance(d, Worded)]
        self.batches, self.waiting = [], False

    def at(self, draws: Sequence[Any]) -> None:
        """Set the current mini-batch; which samples are in it is found when it is asked about."""
        if not self.worded:     # a trial outside of a run
            super().at(draws)
            return
        self.k, self.working, self.waiting = self.k + 1, len(draws), True

    def grad(self, x: Vec) -> Vec:
        """Return the mini-batch gradient at x [..., P]."""
        return self._ready(x).grad(x)

    def value(self, x: Vec) -> Tensor:
        """Return the mini-batch loss at x [..., P] as [..., 1]."""
        return self._ready(x).value(x)

    def hvp(self, x: Vec, v: Vec) -> Vec:
        """Return the mini-batch Hessian at x times v, both [..., P]."""
        return self._ready(x).hvp(x, v)

    def grad_of(self, x: Vec, others: Sequence[Vec], objective: Objective) -> Vec:
        """Return the gradient at x [P] of an objective of the mini-batch."""
        return self._ready(x).grad_of(x, others, objective)

    def _ready(self, x: Vec) -> Any:
        """Return the inner oracle, at the present mini-batch."""
        if self.waiting:
            if not self.batches:
                rows = x.detach().view(-1, x.shape[-1])
                self.batches = [self.rule.mini_batches(self.losses(m, row).cpu(), worded)
                                for m, row, worded in zip(self.clients, rows, self.worded, strict=False)]
                if self.k == 0:     # nothing was asked yet, and it may gather ahead
                    self.inner.enter(self.clients, self.batches)
            self.inner.at([batches[self.k] for batches in self.batches[:self.working]])
            self.waiting = False
        return self.inner
