"""Whether a run can go on from a checkpoint: it is intact, but is it of this run, and is all there that it names?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import Snapshot
from ..contracts import ServerAlgorithm
from ..errors import CheckpointError
from ..experiment import Experiment, Loop
from ..worker.state_files import StateFiles

CLOCKS = ("simulated", "now", "sent")   # numbers of a loop that never fall below zero


def usable(e: Experiment, folder: Path) -> Callable[[int, Snapshot], None]:
    """Return a check of checkpoints: the clients' states that they name must be in the folder, undamaged.

    It raises a CheckpointError, saying what is missing or wrong. Of another experiment's checkpoint it asks nothing of
    the states: that is refused for what differs.
    """

    def check(round: int, snapshot: Snapshot) -> None:
        meta, clients = snapshot.meta, len(e.task.sizes)
        identity, states = meta.get("identity"), meta.get("states")
        if not isinstance(meta.get("loop"), dict):
            raise _unfit(round, "it does not say where the run stood")
        if not isinstance(identity, dict) or not all(isinstance(value, str) for value in identity.values()):
            raise _unfit(round, "it does not say of which run it is")
        if not isinstance(states, list) or not all(map(_is_state, states)):
            raise _unfit(round, "it does not list the clients' states that it needs")
        if identity != e.identity() or not states:
            return
        if (most := max(client for client, _ in states)) >= clients:
            raise _unfit(round, f"it needs a state of client {most}, but there are {clients} clients")
        if not isinstance(e.algorithm, ServerAlgorithm):
            raise _unfit(round, "it needs clients' states, which this algorithm does not have")
        template = e.algorithm.client_init(e.task.initial(e.seed))
        StateFiles(folder, template).check([(client, version) for client, version in states])

    return check


def restore(loop: Loop, round: int, snapshot: Snapshot) -> None:
    """Let a loop continue from a checkpoint after so many rounds.

    Raises:
        CheckpointError: if what it holds cannot be the state of this loop.
    """
    for name, like in loop.snapshot()[0].items():
        found = snapshot.tensors.get(name)
        if found is None:
            raise _unfit(round, f"it holds no tensor {name!r}")
        # What is empty at the start, such as the state of an optimiser by name, takes its size in the first round.
        if found.dtype != like.dtype or (like.numel() and _fixed(found) != _fixed(like)):
            raise _unfit(round, f"its tensor {name!r} is {found.dtype} {list(found.shape)}, not {like.dtype} "
                                f"{list(like.shape)}")
    meta = snapshot.meta["loop"]
    for name in CLOCKS:
        if name in meta and not _at_least_zero(meta[name]):
            raise _unfit(round, f"{name} is {meta[name]!r}, not a number >= 0")
    try:
        loop.restore(snapshot.tensors, meta)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise _unfit(round, f"what it says of the run cannot be read ({type(error).__name__}: {said})") from error
    if sorted(map(tuple, snapshot.meta["states"])) != sorted(map(tuple, loop.states())):
        raise _unfit(round, "the clients' states that it lists are not those that the run needs")


def _fixed(t: Tensor) -> tuple[int, int]:
    """Return of a tensor's shape what no round changes: how many dimensions, and the length of its vectors."""
    return t.ndim, t.shape[-1] if t.ndim else 0


def _is_state(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 <= n < 2**63 for n in pair)


def _at_least_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _unfit(round: int, what: str) -> CheckpointError:
    return CheckpointError(f"the checkpoint of round {round} does not belong to this run: {what}; remove its folder "
                           "and resume, which goes on from the one before, or start a new run")
