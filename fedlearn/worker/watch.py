"""Algorithms around a client's work that look on: at the clock, or at every number; and whose fault an error is.

They are put around only where they are needed, so that work that nobody watches costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from ..contracts import Msg, Oracle, ServerAlgorithm, StepInfo, Tree
from ..errors import ClientError, DataError, FedlearnError, ResourceError
from ..vectors import tree_flat
from ..work import Work


class Late(Exception):
    """The time of a work is over; the message says how far a client came."""


class Found(Exception):
    """A number that is none; the message says where it came up first."""


class InStep(Exception):
    """Something, its cause, went wrong at local step ``k`` (from 0; -1: before the first) of so many."""

    def __init__(self, k: int, steps: int) -> None:
        super().__init__(place(k, steps))


class Timed:
    """An algorithm whose clients stop at the first local step that would begin after ``until``."""

    def __init__(self, inner: ServerAlgorithm, until: float) -> None:
        self.inner, self.until = inner, until

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        """Take a step, if there is time.

        Raises:
            Late: if there is none.
        """
        if monotonic() > self.until:
            raise Late(f"it was not done in time, only at local step {step(info)}")
        return self.inner.local_step(y, b, c, oracle, info)


class Watched:
    """An algorithm that stops at the first local step whose loss, gradient or result is not finite."""

    def __init__(self, inner: ServerAlgorithm) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def local_step(self, y: Tree, b: Msg, c: Tree, oracle: Oracle, info: StepInfo) -> Tree:
        """Take a step and look at what came of it.

        Raises:
            Found: if a number of it is none.
        """
        y = self.inner.local_step(y, b, c, WatchedOracle(oracle, info), info)
        if not finite(y):
            raise Found(f"the model became so at local step {step(info)}")
        return y


class WatchedOracle:
    """An oracle whose answers are looked at."""

    def __init__(self, inner: Any, info: StepInfo) -> None:
        self.inner, self.info = inner, info

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self._looked_at(name, found) if callable(found) else found

    def _looked_at(self, name: str, call: Callable) -> Callable:
        def answer(*args: Any, **more: Any) -> Any:
            given = call(*args, **more)
            if not finite(self.inner.loss):
                raise Found(f"the loss became so at local step {step(self.info)}")
            if not finite(given):
                what = "loss" if "value" in name else "gradient" if "grad" in name else f"oracle's {name}"
                raise Found(f"the {what} became so at local step {step(self.info)}")
            return given
        return answer


def finite(tree: Tree) -> bool:
    """Say whether all numbers of a tree are finite."""
    return all(bool(t.isfinite().all()) for t in tree_flat(tree).values()) if _holds(tree) else True


def _holds(tree: Tree) -> bool:
    return isinstance(tree, Tensor | tuple | list | dict)


def step(info: StepInfo) -> str:
    """Say which local step of how many it is, from 1."""
    steps = info.steps
    return f"{info.k + 1} of {int(steps.max()) if isinstance(steps, Tensor) else steps}"


def place(k: int, steps: int) -> str:
    """Say in words where local step ``k`` of so many is, from 0; -1 is before the first."""
    return f"at local step {k + 1} of {steps}" if k >= 0 else "before its first local step"


def blamed(e: Exception, client: int, work: Work, where: str = "") -> ClientError:
    """Return what went wrong in a client's work as an error that names the client, the round and the local step.

    Raises:
        FedlearnError: where the client has no part in it: another error of fedlearn's, or memory that does not
            suffice.
    """
    cause = e
    if isinstance(e, InStep) and isinstance(e.__cause__, Exception):
        where, cause = str(e), e.__cause__
    if isinstance(cause, ClientError):
        return cause
    if isinstance(cause, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(cause):
        raise ResourceError(f"memory does not suffice for the work of client {client}, round {work.round}: {cause}; "
                            "smaller batches, smaller stacks (stack=false) or fewer workers need less") from cause
    if isinstance(cause, FedlearnError) and not isinstance(cause, DataError):
        raise cause
    made = ClientError(client, work.round, f"its local work failed with {type(cause).__name__}"
                       f"{where and ' '}{where}: {cause}")
    made.__cause__ = cause
    return made
