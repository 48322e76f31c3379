"""What an upload has to be before it may touch the sum: which vectors, all finite, none too large.

Whether an upload is good depends on nothing but itself and the round's work, never on the uploads that it would be
added to: it is refused or not wherever its client runs. So where bad updates are left out, every client has an equal
share of the exact sum's range, and the sum of those that keep to it cannot overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contracts import LocalPlan, Msg, ServerAlgorithm, Stage, StepInfo, Tree
from ..errors import BadUpdate, ClientError, ConfigError, UpdateOverflow
from ..policies.schedule import Schedule
from ..reducers.layout import Layout, non_finite, peaks_of
from ..vectors import tree_map

CHUNK = 65_536  # entries of an upload that are squared at a time


def expected(algorithm: ServerAlgorithm, broadcast: Msg, state: Tree, stages: Sequence[Stage], client: int,
             info: StepInfo, stepped: bool = True) -> Layout:
    """Return what the algorithm and the stages of the pipeline make of a client that computed no gradient.

    It takes one step where all gradients are zero if ``stepped``, else none. ``info`` is where it ends.

    Raises:
        ConfigError: if they cannot do so.
    """
    # They may write to what they are given.
    b, c = {name: v.clone() for name, v in broadcast.items()}, tree_map(torch.clone, state)
    try:
        y = algorithm.local_init(b, c)
        if stepped:
            y = algorithm.local_step(y, b, c, Flat(), replace(info, k=0, t=info.t - int(info.steps), lr_total=0.0))
        msg, _ = algorithm.local_finish(y, b, c, info)
        for stage in stages:
            msg = stage.encode(msg, client, info.round)
        return Layout.of({name: v.unsqueeze(0) for name, v in msg.items()}, client, info.round)
    except Exception as e:
        raise ConfigError("algorithm", type(algorithm).__name__, "one whose local steps, and a pipeline, do with zeros "
                          "for gradients", f"What clients are to send is found so; it says: {e}.") from e


class Flat:
    """An oracle of an objective that is zero."""

    def grad(self, x: Tensor, *given: Any) -> Tensor:
        """Return zeros like x, whatever else is given."""
        return torch.zeros_like(x)

    hvp = full_grad = direction = grad_of = grad

    def value(self, x: Tensor) -> Tensor:
        """Return a zero for each model."""
        return torch.zeros_like(x[..., :1])

    full_value = value


def at_the_end(plan: LocalPlan, schedule: Schedule, round: int, rounds: int, samples: int) -> StepInfo:
    """Return where a client with so many samples stands after the last local step of a round."""
    steps, before, factor, total = plan.steps_for(samples), plan.before, 1.0, 0.0
    for k in range(steps):
        factor = schedule.factor(round, rounds, k, before + k) * plan.lr_factor
        total += factor
    return StepInfo(round, steps, steps, factor, before + steps, total)


class Judged(NamedTuple):
    """The largest weighted entry of each upload, and what is wrong, by row, with those that are bad."""

    peaks: Sequence[float]
    bad: Mapping[int, ClientError]


def judge(msg: Msg, weights: Mapping[str, Sequence[float]], clients: Sequence[int], round: int,
          asked: Callable[[Layout], Layout | None], share: float | None = None, norm: float | None = None) -> Judged:
    """Look at the uploads [clients, numel] of clients that finished together.

    ``asked``, given the layout that they have, returns the one that they must have (None: any that a sum can have);
    ``share`` is what the largest weighted entry of each must stay below, ``norm`` the bound of each one's norm.
    """
    try:
        found = Layout.of(msg, clients[0], round)
    except ClientError as e:
        return Judged([], {i: BadUpdate(m, round, e.what) for i, m in enumerate(clients)})
    wanted = asked(found)
    if wanted is not None and found != wanted:
        why = f"its upload is {describe(found)}; allowed: {describe(wanted)}, as the algorithm's local_finish gives"
        return Judged([], {i: BadUpdate(m, round, why) for i, m in enumerate(clients)})
    peaks, bad = peaks_of(msg, weights, len(clients)), dict[int, ClientError]()
    for i, (m, peak) in enumerate(zip(clients, peaks, strict=True)):
        if peak == math.inf:
            bad[i] = non_finite(msg, i, m, round)
        elif share is not None and peak >= share:
            bad[i] = UpdateOverflow(m, round, f"an entry of size {peak:.3g}, times its weight; allowed for each client "
                                    f"of this round: less than {share:.3g}; lower the client step size, or clip the "
                                    "updates")
        elif norm is not None and not (size := norm_of(msg, i)) <= norm:
            bad[i] = BadUpdate(m, round, f"its upload has norm {size:.4g}; allowed: at most {norm:g} (max_update_norm)")
    return Judged(peaks, bad)


def describe(layout: Layout) -> str:
    """Say in words what an upload consists of."""
    return ", ".join(f"{name} [{numel}] {dtype}" for name, numel, dtype in layout.parts) or "nothing"


def norm_of(msg: Msg, row: int) -> float:
    """Return the Euclidean norm of a row of all vectors together: the same bits wherever the row stands."""
    return math.sqrt(math.fsum(_square(part) for name in sorted(msg) for part in msg[name][row].split(CHUNK)))


def _square(part: Tensor) -> float:
    # A copy of its own begins at an aligned address, wherever the row does.
    return float(part.detach().to(torch.float64, copy=True).square_().sum())


def without(rows: Mapping[int, ClientError], things: Sequence) -> list:
    """Return what does not stand at these rows."""
    return [thing for i, thing in enumerate(things) if i not in rows]
