"""An algorithm around another one: it does what the inner one does, but for what it says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..contracts import LocalPlan, Msg, Oracle, RoundInfo, ServerAlgorithm, StepInfo, Tree, Vec


class Around(NamedTuple):
    """A state of the inner algorithm, and what the outer one keeps beside it."""

    inner: Tree
    own: Tree


@dataclass(frozen=True)
class Wrapped(ServerAlgorithm):
    """Passes everything on to ``inner``; server, client and local states are its own.

    Who keeps something beside them, overrides the methods concerned and puts both into an ``Around``.
    """

    inner: ServerAlgorithm

    @property
    def unweighted(self) -> frozenset[str]:     # type: ignore[override]
        return self.inner.unweighted

    @property
    def equal_steps(self) -> bool:      # type: ignore[override]
        return self.inner.equal_steps

    @property
    def everybody(self) -> bool:        # type: ignore[override]
        return self.inner.everybody

    @property
    def local_sgd(self) -> bool:        # type: ignore[override]
        return self.inner.local_sgd

    @property
    def hessians(self) -> bool:         # type: ignore[override]
        return self.inner.hessians

    @property
    def directions(self) -> bool:       # type: ignore[override]
        return self.inner.directions

    @property
    def individual(self) -> bool:       # type: ignore[override]
        return self.inner.individual

    @property
    def alone(self) -> bool:            # type: ignore[override]
        return self.inner.alone

    @property
    def horizon(self) -> bool:          # type: ignore[override]
        return self.inner.horizon

    @property
    def unstackable(self) -> str:       # type: ignore[override]
        return self.inner.unstackable

    @property
    def unsteady(self) -> bool:         # type: ignore[override]
        return self.inner.unsteady

    @property
    def representations(self) -> bool:      # type: ignore[override]
        return self.inner.representations

    @property
    def prelude(self) -> ServerAlgorithm | None:
        return self.inner.prelude

    def server_init(self, x0: Vec) -> Tree:
        return self.inner.server_init(x0)

    def client_init(self, x0: Vec) -> Tree:
        return self.inner.client_init(x0)

    def broadcast(self, s: Tree) -> Msg:
        return self.inner.broadcast(s)

    def local_init(self, b: Msg, c: Tree) -> Tree:
        return self.inner.local_init(b, c)

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        return self.inner.local_step(y, b, c, oracle, info)

    def local_finish(self, y: Tree, b: Msg, c: Tree, info: StepInfo) -> tuple[Msg, Tree]:
        return self.inner.local_finish(y, b, c, info)

    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> Tree:
        return self.inner.server_update(s, mean, info)

    def model(self, s: Tree) -> Vec:
        return self.inner.model(s)

    def iterate(self, y: Tree) -> Vec:
        return self.inner.iterate(y)

    def plan(self, s: Tree, local: LocalPlan) -> LocalPlan:
        return self.inner.plan(s, local)

    def metrics(self, s: Tree) -> dict[str, float]:
        return self.inner.metrics(s)


@dataclass(frozen=True)
class OnServer(Wrapped):
    """A wrapper that keeps something beside the inner server state; ``server_init`` and ``server_update`` are left.

    A prelude of the inner algorithm updates the inner state.
    """

    @property
    def prelude(self) -> ServerAlgorithm | None:
        first = self.inner.prelude
        return None if first is None else _OnInner(first)

    def broadcast(self, s: Around) -> Msg:
        return self.inner.broadcast(s.inner)

    def model(self, s: Around) -> Vec:
        return self.inner.model(s.inner)

    def plan(self, s: Around, local: LocalPlan) -> LocalPlan:
        return self.inner.plan(s.inner, local)

    def metrics(self, s: Around) -> dict[str, float]:
        return self.inner.metrics(s.inner)


@dataclass(frozen=True)
class _OnInner(Wrapped):
    """A prelude that is given the outer server state and updates the inner one."""

    def broadcast(self, s: Around) -> Msg:
        return self.inner.broadcast(s.inner)

    def server_update(self, s: Around, mean: Msg, info: RoundInfo) -> Around:
        return s._replace(inner=self.inner.server_update(s.inner, mean, info))
