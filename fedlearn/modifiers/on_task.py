"""A task, and an oracle, around another one: they do what the inner one does, but for what they say otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np

from ..contracts import ClientOracle, LocalPlan, Task

AGAIN = ("to", "regroup", "stand_in")   # methods that return another task, which is to be modified as well


@dataclass(frozen=True, eq=False)
class OnTask:
    """A task whose oracles are changed by ``around``, and whose draws carry a random word for them.

    The word comes from the stream of the client's round, after the draws themselves: these stay as they are, and
    what an oracle draws is keyed by seed, round and client.
    """

    inner: Task

    def around(self, oracle: ClientOracle) -> ClientOracle:
        """Return the oracle that is used instead."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":    # as when it is unpickled
            raise AttributeError(name)
        found = getattr(self.inner, name)
        if name in AGAIN:
            return lambda *args: replace(self, inner=found(*args))
        return found

    @property
    def modified(self) -> str:
        """What was put around the innermost task, for the run's identity."""
        own = {name: value for name, value in vars(self).items() if name != "inner"}
        return f"{getattr(self.inner, 'modified', '')}{type(self).__name__}({own})"

    @property
    def oracle(self) -> Callable[..., ClientOracle]:
        """Return a new oracle of the asked kind; it takes what the inner task's method takes."""
        make = self.inner.oracle

        @wraps(make)
        def oracle(*args: Any, **more: Any) -> ClientOracle:
            return self.around(make(*args, **more))

        return oracle

    def draws(self, client: int, rng: np.random.Generator, local: LocalPlan) -> Sequence[Any]:
        """Return the inner task's draws, with a word and what is known of the round."""
        inner = self.inner.draws(client, rng, local)
        before = local.before or local.round * len(inner)
        return Worded(inner, int(rng.integers(2**63)), before, local.batch_for(int(self.inner.sizes[client])))


class Worded(Sequence[Any]):
    """The draws of a client's round, with a random word, the local steps before and the size of a full batch."""

    __slots__ = ("inner", "word", "before", "batch")

    def __init__(self, inner: Sequence[Any], word: int, before: int, batch: int) -> None:
        self.inner, self.word, self.before, self.batch = inner, word, before, batch

    def __len__(self) -> int:
        """Return K, the number of steps."""
        return len(self.inner)

    def __getitem__(self, k: Any) -> Any:
        """Return the inner draw k."""
        return self.inner[k]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)


class OnOracle:
    """An oracle around another one; all that it does not define is the inner oracle's."""

    def __init__(self, oracle: ClientOracle) -> None:
        self.inner: Any = oracle
        self.worded: Sequence[Worded] = ()
        self.clients: Sequence[int] = ()
        self.k = -1         # the step
        self.working = 0    # clients that still work

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        if name == "expect":
            expect = self.inner.expect
            return lambda clients, draws: expect(clients, [_plain(d) for d in draws])
        return getattr(self.inner, name)

    def enter(self, clients: Sequence[int], draws: Sequence[Sequence[Any]] | None = None) -> None:
        """Take over the data of one client, or of a stack of clients."""
        self.worded = [d for d in draws or () if isinstance(d, Worded)]
        self.clients, self.k, self.working = clients, -1, len(clients)
        self.inner.enter(clients, None if draws is None else [_plain(d) for d in draws])

    def at(self, draws: Sequence[Any]) -> None:
        """Set the current mini-batch: one draw per client still in the stack (a leading part)."""
        self.k, self.working = self.k + 1, len(draws)
        self.inner.at(draws)


def _plain(draws: Sequence[Any]) -> Sequence[Any]:
    return draws.inner if isinstance(draws, Worded) else draws
