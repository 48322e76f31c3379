"""Optimisers by name, on clients and on the server, in the place of an algorithm's own plain steps.

    client m:   y_{k+1} = step(y_k, g_m(y_k)),      with the step size of the algorithm, for algorithms whose local
                                                    step is y - eta g and nothing more
    server:     x <- step(x, -(x' - x)),            x' what the algorithm makes of the uploads, with a step size of
                                                    its own; the algorithm's server step size should be 1

The second is FedOpt of S. J. Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 1, for any
optimiser and around any algorithm of synchronous rounds: the step that the algorithm would make is the negative
gradient. With ``sgd`` and step size 1 it is the algorithm itself. A schedule's factor for the server multiplies the
named optimiser's step size.

A client's optimiser starts anew in each round (``keep="reset"``), or goes on where the client's last round ended
(``keep="keep"``, which the client stores: it sends nothing more). AdaHessian and SophiaH get Hutchinson's estimate
z * H z of the Hessian's diagonal, with the signs z of a random direction.

Deviations: betas, eps and the like are the classes' own, of torch.optim or of pytorch_optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..contracts import (
    ArrivalInfo,
    AsyncServerAlgorithm,
    CodedAlgorithm,
    Msg,
    Oracle,
    RoundInfo,
    ServerAlgorithm,
    StepInfo,
    Task,
    Tree,
    Vec,
)
from ..errors import ConfigError, one_of
from ..vectors import trainable
from .optimizer_state import ROOM, Packed, blank, pack, unpack
from .stepper import Recipe, Shapes, Stepper, Verdict, tried
from .wrapped import Around, OnServer, Wrapped

KEEP = ("reset", "keep")


@dataclass(frozen=True)
class LocalOptimizer:
    """The optimiser of every client: its name, options of its class, and what becomes of its state after a round.

    Its step size is the algorithm's.

    Raises:
        ConfigError: if ``keep`` is unknown.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: str = "reset"

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise ConfigError("local.keep", self.keep, one_of(KEEP, str(self.keep)))

    def around(self, algorithm: Any, shapes: Shapes = ()) -> WithLocalOptimizer:
        """Return the algorithm with this optimiser in the place of its local step.

        Raises:
            ConfigError: if its local step is another than y - lr grad, or the optimiser cannot take its place.
        """
        name, key = type(algorithm).__name__, "local.optimizer"
        if not isinstance(algorithm, ServerAlgorithm) or isinstance(algorithm, CodedAlgorithm):
            raise ConfigError(key, self.name, f"null with algorithm {name}",
                              "It goes with algorithms of protocol=synchronous or asynchronous.")
        if not plain(algorithm):
            raise ConfigError(key, self.name, f"null with algorithm {name}",
                              "Its local step is another than y - lr * gradient, so no optimiser can take its place.")
        recipe = Recipe("local", self.name, algorithm.lr, _fixed(self.options), shapes)     # type: ignore[attr-defined]
        found = tried(recipe)
        kind: Any = AsyncWithLocalOptimizer if isinstance(algorithm, AsyncServerAlgorithm) else WithLocalOptimizer
        made = kind(algorithm, _for(recipe, found), self.keep, found)
        if self.keep == "keep":
            made.room(torch.zeros(sum(map(math.prod, shapes)) or 67))
        return made


@dataclass(frozen=True)
class ServerOptimizer:
    """The optimiser of the server: its name, its step size (None: the default of its class), and its options."""

    name: str
    lr: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def around(self, algorithm: Any, shapes: Shapes = ()) -> WithServerOptimizer:
        """Return the algorithm with this optimiser for the server's steps.

        Raises:
            ConfigError: if the algorithm has no server of synchronous rounds, or the optimiser cannot be used there.
        """
        name, key = type(algorithm).__name__, "server.optimizer"
        if not isinstance(algorithm, ServerAlgorithm) or isinstance(algorithm, AsyncServerAlgorithm | CodedAlgorithm):
            raise ConfigError(key, self.name, f"null with algorithm {name}",
                              "It goes with algorithms of protocol=synchronous.")
        fields = getattr(algorithm.server_init(torch.zeros(1)), "_fields", ())
        if "x" not in fields:
            raise ConfigError(key, self.name, f"null with algorithm {name}", "Its server state has no model x.")
        recipe = Recipe("server", self.name, self.lr, _fixed(self.options), shapes)
        found = tried(recipe)
        if found.random:
            raise ConfigError(key, self.name, "an optimiser that draws no random numbers",
                              "The server has no stream of them that a resumed run could go on with.")
        if Stepper(recipe).curved:
            raise ConfigError(key, self.name, "an optimiser without Hessians", "The server sees no loss.")
        return WithServerOptimizer(algorithm, _for(recipe, found))


def optimised(algorithm: Any, task: Task | None, local: LocalOptimizer | str | None = None,
              server: ServerOptimizer | str | None = None) -> Any:
    """Return the algorithm with the named optimisers around it, for the parameters of a task's model.

    Raises:
        ConfigError: if one cannot be used, naming it and the reason.
    """
    model = getattr(task, "model", None)
    shapes = tuple(tuple(p.shape) for _, p in trainable(model)) if isinstance(model, nn.Module) else ()
    if local is not None:
        algorithm = (LocalOptimizer(local) if isinstance(local, str) else local).around(algorithm, shapes)
    if server is not None:
        algorithm = (ServerOptimizer(server) if isinstance(server, str) else server).around(algorithm, shapes)
    return algorithm


def plain(algorithm: ServerAlgorithm) -> bool:
    """Return whether an algorithm says that its local step is y - lr grad: a subclass with another step does not."""
    if isinstance(algorithm, Wrapped):
        return plain(algorithm.inner)
    if not algorithm.local_sgd:
        return False
    order = type(algorithm).__mro__
    said, step = (next(i for i, cls in enumerate(order) if name in vars(cls)) for name in ("local_sgd", "local_step"))
    return said <= step


@dataclass(frozen=True)
class _Stepping(Wrapped):
    """Makes steps with an optimiser."""

    recipe: Recipe

    @cached_property
    def _stepper(self) -> Stepper:
        return Stepper(self.recipe)


@dataclass(frozen=True)
class WithLocalOptimizer(_Stepping):
    """Steps each client with the named optimiser; the local state is (inner, the optimiser's state)."""

    keep: str
    found: Verdict = field(default=Verdict("", False), repr=False)

    @property
    def unstackable(self) -> str:     # type: ignore[override]
        kept = "A client keeps its optimiser's state (local.keep)." if self.keep == "keep" else ""
        return self.inner.unstackable or self.found.unstackable or kept

    @property
    def unsteady(self) -> bool:     # type: ignore[override]
        return self.inner.unsteady or self.found.unsteady

    @property
    def hessians(self) -> bool:     # type: ignore[override]
        return self.inner.hessians or self._stepper.curved

    @property
    def directions(self) -> bool:   # type: ignore[override]
        return self.inner.directions or self._stepper.curved

    def client_init(self, x0: Vec) -> Tree:
        first = self.inner.client_init(x0)
        return first if self.keep == "reset" else Around(first, self.room(x0))

    def local_init(self, b: Msg, c: Tree) -> Around:
        if self.keep == "reset":
            return Around(self.inner.local_init(b, c), {})
        return Around(self.inner.local_init(b, c.inner), unpack(c.own, b["x"].device))

    def local_step(self, y: Around, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Around:
        x, curvature = self.inner.iterate(y.inner), None
        g = oracle.grad(x).clone()
        if self._stepper.wants_curvature(y.own):
            z = oracle.direction(x).sign()
            curvature = z * oracle.hvp(x, z)
        return Around(y.inner, self._stepper.step(x, g, y.own, info.lr_factor, curvature))

    def local_finish(self, y: Around, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        if self.keep == "reset":
            return self.inner.local_finish(y.inner, b, c, info)
        msg, state = self.inner.local_finish(y.inner, b, c.inner, info)
        return msg, Around(state, pack(y.own, c.own))

    def iterate(self, y: Around) -> Vec:
        return self.inner.iterate(y.inner)

    def room(self, x0: Vec) -> Packed:
        """Return no state yet, in as many bytes as a state will take.

        Raises:
            ConfigError: if that changes from step to step.
        """
        x, form = x0.clone(), 0
        state: Tree = {}
        sizes: set[int] = set()
        for _ in range(3):
            state = self._stepper.step(x, x0 + 1, state, curvature=x0 + 1)
            packed = pack(state)
            sizes.add(len(packed.data))
            form = 2 * len(packed.form) + ROOM
        if len(sizes) > 1:
            raise ConfigError("local.keep", self.keep, f"reset with local.optimizer={self.recipe.name}",
                              "The size of its state changes from step to step.")
        return blank(form, sizes.pop())


@dataclass(frozen=True)
class AsyncWithLocalOptimizer(WithLocalOptimizer, AsyncServerAlgorithm):
    """The same around an algorithm with an asynchronous server."""

    inner: AsyncServerAlgorithm

    @property
    def buffer(self) -> int:        # type: ignore[override]
        return self.inner.buffer

    def arrival_weight(self, info: ArrivalInfo) -> float:
        return self.inner.arrival_weight(info)


@dataclass(frozen=True)
class WithServerOptimizer(_Stepping, OnServer):
    """Steps the server's model with the named optimiser; its state is kept beside the inner server state."""

    def server_init(self, x0: Vec) -> Around:
        return Around(self.inner.server_init(x0), blank())

    def server_update(self, s: Around, mean: Msg, info: RoundInfo) -> Around:
        inner = self.inner.server_update(s.inner, mean, replace(info, lr_factor=1.0))
        x = s.inner.x.clone()
        state = self._stepper.step(x, s.inner.x - inner.x, unpack(s.own, x.device), info.lr_factor)
        return Around(inner._replace(x=x), pack(state))


def _for(recipe: Recipe, found: Verdict) -> Recipe:
    """Return the recipe for the whole vector, where the optimiser treats each of its coordinates by itself."""
    return recipe if found.unstackable else replace(recipe, shapes=())


def _fixed(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return options in a form that cannot change, with tuples for lists as the classes expect them."""
    def fixed(value: Any) -> Any:
        return tuple(map(fixed, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value

    return tuple((name, fixed(value)) for name, value in sorted(options.items()))
