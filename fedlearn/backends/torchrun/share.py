"""A rank's part of a round: what it is told, what it does, what it says; and what rank 0 makes of all that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import FedlearnError
from ...faults import Dropped, at
from ...reducers.exact import ExactSum
from ...reducers.layout import Layout
from ...work import SUMS, Part, Record, Reduced, Sum, Work
from ...worker.worker import Worker
from ..device import moved
from ..gather import agree, check_bound, check_untouched, decode, encode, first, in_order, refusals, versions
from .bundle import SMALL, WRAP, Altered, bundle, length, room_for, unbundle
from .group import Group
from .lost import Lost


@dataclass(frozen=True)
class Plan:
    """A local plan that was worked out elsewhere: samples -> (steps, batch size)."""

    table: Mapping[int, tuple[int, int]]
    before: int = 0
    round: int = 0
    lr_factor: float = 1.0

    def steps_for(self, samples: int) -> int:
        """Return K for a client with so many samples."""
        return self.table[samples][0]

    def batch_for(self, samples: int) -> int:
        """Return the size of a full mini-batch for a client with so many samples."""
        return self.table[samples][1]


def to_header(work: Work, shares: Sequence[Sequence[int]], sizes: Any, largest: int) -> dict[str, Any]:
    """Return all of a work but its vectors, as JSON can carry it; ``largest`` is that of all clients' sizes."""
    samples = sorted({largest, *(int(sizes[client]) for client in work.clients)})
    plan = [[n, work.local.steps_for(n), work.local.batch_for(n)] for n in samples]
    return {"round": work.round, "key": work.key, "clients": [int(m) for m in work.clients],
            "weights": [float(w) for w in work.weights], "plan": plan,
            "versions": [[int(m), int(v)] for m, v in work.versions.items()],
            "shares": [[int(m) for m in share] for share in shares], "before": work.local.before,
            "local": [work.local.round, work.local.lr_factor],
            "prelude": work.prelude, "deadline": work.deadline}


def from_header(header: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> Work:
    """Rebuild the work that ``to_header`` described."""
    plan = Plan({n: (steps, batch) for n, steps, batch in header["plan"]}, header["before"], *header["local"])
    return Work(header["round"], header["key"], vectors, header["clients"], header["weights"], plan,
                dict(header["versions"]), header["prelude"], header["deadline"])


class Share:
    """What a rank did of a round: its partial sum, its error if there is one, and what it says of both."""

    def __init__(self, group: Group, worker: Worker, work: Work, clients: Sequence[int], wire: str) -> None:
        self.group, self.wire, self.round, self.turn = group, wire, work.round, group.commands
        self.sum = SUMS[worker.setup.reduce]()
        self.error: Exception | None = None
        part, injected = Part([], []), None
        # The first share of a process is no measure: it loads code and fills caches.
        fresh, began = worker.steps_done == 0, perf_counter()
        try:
            if clients:
                here = moved(work, group.device)
                before = versions(here)
                part = worker.reduce(here, clients, self.sum)
                check_untouched(before, here, clients)
            injected = at("upload", work.round)
        except Dropped as e:
            raise Lost(f"it dropped {e}", own=True) from e
        except Exception as e:
            self.error = e
        self.sum.carry()
        seconds = 0.0 if fresh else perf_counter() - began
        fault = None if self.error is None else encode(self.error, f"rank {group.rank}")
        layout = None if self.sum.layout is None or fault else self.sum.layout.parts
        alone = layout is not None and not small(self.sum)    # it travels by itself, if at all
        check = group.check(self.sum.buffer, self.turn) if alone and isinstance(self.sum, ExactSum) else 0
        words = {"records": list(zip(*map(COLUMNS, part.records), strict=True)), "layout": layout,
                 "bound": self.sum.bound, "check": check, "error": fault, "seconds": seconds,
                 "refused": [encode(e, "") for e in part.refused]}
        mine = [crossing(self.sum.buffer, wire)] if layout and small(self.sum) and group.rank else []
        self.said = bundle(words, mine)
        if injected is not None and injected.kind == "corrupt":
            self.said[-1] ^= 1

    def reduce(self, parts: Any) -> None:
        """Add all ranks' partial sums up at rank 0; every rank calls it, those that were idle too."""
        if self.sum.layout is None:
            self.sum.shape_as(Layout.from_json(parts), self.group.device if self.group.nccl is not None else "cpu")
        self.sum.buffer = self.group.reduce(self.sum.buffer, self.wire)


COLUMNS = attrgetter(*(f.name for f in fields(Record)))


def small(total: Sum) -> bool:
    """Return whether partial sums like this one travel with the words."""
    return total.buffer.numel() * total.buffer.element_size() <= SMALL


def crossing(buffer: Tensor, wire: str) -> Tensor:
    """Return a partial sum as it crosses the wire."""
    return (buffer.bfloat16() if wire == "bf16" else buffer).cpu()


class Outcome(NamedTuple):
    """What became of a round, or the error to raise; the room that answers take; each rank's clients and seconds.

    The clients are those whose replies are in the sum; 0 seconds mean that nobody measured.
    """

    result: Reduced | Exception
    room: int
    did: Sequence[tuple[Sequence[int], float]] = ()


def conduct(mine: Share, work: Work, shares: Sequence[Sequence[int]], room: int) -> Outcome:
    """Return at rank 0 what became of a round.

    Other ranks do what rank 0's commands ask for, one after another: after an error nobody is left waiting.

    Raises:
        Lost: if a rank is gone, or something arrived altered.
    """
    group, total = mine.group, mine.sum
    answers = group.gather(mine.said, room)
    while (most := max(_opened(answers, length))) > room:
        room = room_for(most)
        group.send({"again": room}, {})
        answers = group.gather(mine.said, room)
    everyone = _opened(answers, unbundle)
    told = [words for words, _ in everyone]
    failures = [decode(words["error"]) for words in told if words["error"]]
    if failures:
        worst = first(failures, work)
        # An error of this very rank keeps its traceback.
        own = mine.error is not None and encode(mine.error, "rank 0") == encode(worst, "")
        return Outcome(mine.error if own and mine.error else worst, room)
    bounds = [words["bound"] for words in told]
    try:
        shape = agree([words["layout"] and Layout.from_json(words["layout"]) for words in told], shares, work)
        check_bound(bounds, shares, work)
    except FedlearnError as e:
        return Outcome(e, room)
    if shape is not None:
        if total.layout is None:
            total.shape_as(shape)
        if small(total):
            total.buffer = total.buffer.cpu()
            for _, part in everyone[1:]:
                if part.numel():
                    kind = torch.bfloat16 if mine.wire == "bf16" else total.buffer.dtype
                    total.buffer.add_(part.clone().view(kind))
        else:
            group.send({"reduce": shape.parts}, {})
            checks = [words["check"] for words in told]
            mine.reduce(shape.parts)
            if isinstance(total, ExactSum) and group.check(total.buffer, mine.turn) != sum(checks) % WRAP:
                raise Lost("the sum of the ranks' partial sums arrived altered")
            total.buffer = total.buffer.cpu()
        total.bound = sum(bounds)
    records = (Record(*row) for words in told for row in zip(*words["records"], strict=True))
    refused = refusals((decode(e) for words in told for e in words["refused"]), work)
    did = [(words["records"][0] if words["records"] else [], words["seconds"]) for words in told]
    return Outcome(Reduced(total, in_order(records, work), refused), room, did)


def _opened(answers: Sequence[Tensor], read: Callable[[Tensor], Any]) -> list[Any]:
    """Return what is read of all ranks' answers; the group is lost with a rank whose answer was altered."""
    found = []
    for rank, answer in enumerate(answers):
        try:
            found.append(read(answer))
        except Altered:
            raise Lost(f"the answer of rank {rank} arrived altered", [rank]) from None
    return found
