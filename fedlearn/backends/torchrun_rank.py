"""A rank's part of a round, and the loop in which ranks above 0 serve.

As a program (``python -m fedlearn.backends.torchrun_rank``) it is a rank that a coordinator started
on its own machine: it is told over its standard input where to find its setup, and ends at once
when that closes, so that it never outlives the coordinator.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import FedlearnError, WorkerError
from ..faults import Dropped, at
from ..reducers.layout import Layout
from ..work import SUMS, Part, Record, Reduced, Setup, Sum, Work
from ..worker import Worker
from .gather import agree, check_bound, check_untouched, decode, encode, first, in_order, refusals, versions
from .parcel import unpack
from .torchrun_agree import fingerprint
from .torchrun_bundle import SMALL, bundle, length, room_for, unbundle
from .torchrun_children import LOST
from .torchrun_device import choose, moved, placed
from .torchrun_group import Group, Lost


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
        self.group, self.wire, self.round = group, wire, work.round
        self.sum = SUMS[worker.setup.reduce]()
        self.error: Exception | None = None
        part = Part([], [])
        try:
            if clients:
                here = moved(work, group.device)
                before = versions(here)
                part = worker.reduce(here, clients, self.sum)
                check_untouched(before, here, clients)
            at("upload", work.round)
        except Dropped as e:
            raise Lost(f"dropped {e}") from e
        except Exception as e:
            self.error = e
        self.sum.carry()
        fault = None if self.error is None else encode(self.error, f"rank {group.rank}")
        layout = None if self.sum.layout is None or fault else self.sum.layout.parts
        words = {"records": list(zip(*map(COLUMNS, part.records), strict=True)), "layout": layout,
                 "bound": self.sum.bound, "error": fault, "refused": [encode(e, "") for e in part.refused]}
        mine = [crossing(self.sum.buffer, wire)] if layout and small(self.sum) and group.rank else []
        self.said = bundle(words, mine)

    def reduce(self, parts: Any) -> None:
        """Add all ranks' partial sums up at rank 0; every rank calls it, those that were idle too."""
        if self.sum.layout is None:
            self.sum.shape_as(Layout.from_json(parts), self.group.device)
        self.sum.buffer = self.group.reduce(self.sum.buffer, self.wire)


COLUMNS = attrgetter(*(f.name for f in fields(Record)))


def small(total: Sum) -> bool:
    """Return whether partial sums like this one travel with the words."""
    return total.buffer.numel() * total.buffer.element_size() <= SMALL


def crossing(buffer: Tensor, wire: str) -> Tensor:
    """Return a partial sum as it crosses the wire."""
    return (buffer.bfloat16() if wire == "bf16" else buffer).cpu()


def conduct(mine: Share, work: Work, shares: Sequence[Sequence[int]], room: int) -> tuple[Reduced | Exception, int]:
    """Return at rank 0 what became of a round, or the error to raise, and the room that answers take.

    Other ranks do what rank 0's commands ask for, one after another: after an error nobody is left waiting.

    Raises:
        Lost: if a rank is gone.
    """
    group, total = mine.group, mine.sum
    answers = group.gather(mine.said, room)
    while (most := max(map(length, answers))) > room:
        room = room_for(most)
        group.send({"again": room}, {})
        answers = group.gather(mine.said, room)
    everyone = [unbundle(answer) for answer in answers]
    told = [words for words, _ in everyone]
    failures = [decode(words["error"]) for words in told if words["error"]]
    if failures:
        worst = first(failures, work)
        # An error of this very rank keeps its traceback.
        own = mine.error is not None and encode(mine.error, "rank 0") == encode(worst, "")
        return mine.error if own and mine.error else worst, room
    bounds = [words["bound"] for words in told]
    try:
        shape = agree([words["layout"] and Layout.from_json(words["layout"]) for words in told], shares, work)
        check_bound(bounds, shares, work)
    except FedlearnError as e:
        return e, room
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
            mine.reduce(shape.parts)
            total.buffer = total.buffer.cpu()
        total.bound = sum(bounds)
    records = (Record(*row) for words in told for row in zip(*words["records"], strict=True))
    refused = refusals((decode(e) for words in told for e in words["refused"]), work)
    return Reduced(total, in_order(records, work), refused), room


def enter(group: Group, setup: Setup, composed: bool) -> Worker:
    """Set this rank's worker up as rank 0 says; every rank calls it once.

    ``composed`` says that the ranks composed their setups apart, which must then be equal.

    Raises:
        WorkerError: if a rank has another setup than rank 0.
        FedlearnError: the same at every rank, if a worker could not be made.
    """
    own = fingerprint(setup) if composed else ""
    if group.rank == 0:
        group.send({"states": None if setup.states is None else str(setup.states), "digest": own}, {})
        header: dict[str, Any] = {"digest": own}
    else:
        header, _ = group.receive()
        setup = replace(setup, states=None if header["states"] is None else Path(header["states"]))
    error: Exception | None = None
    try:
        if own != header["digest"]:
            raise WorkerError(f"rank {group.rank} has another setup than rank 0 ({own[:12]}, not "
                              f"{header['digest'][:12]}); start all ranks with the same command, code "
                              "and data")
        worker = Worker(placed(setup, group.device), through=group.world > 1)
    except Exception as e:
        error = e
    failures = [decode(e) for e in group.all(error and encode(error, f"rank {group.rank}")) if e]
    if error is not None and group.rank == 0:
        raise error
    if failures:
        raise failures[0]
    return worker


class Rank:
    """A rank above 0 under torchrun: it serves until rank 0 closes."""

    def __init__(self, group: Group, worker: Worker) -> None:
        self.group, self.worker, self.open = group, worker, True
        self.rank = group.rank
        self.share: Share | None = None

    def serve(self) -> dict[str, Tensor]:
        """Work as rank 0 asks; return the named tensors that it passed to ``close``.

        Raises:
            WorkerError: if rank 0, or another rank that is needed, is gone, or rank 0 closed without
                a result.
        """
        try:
            while True:
                header, vectors = self.group.receive()
                if "final" in header:
                    self.group.barrier()
                    self._end(healthy=True)
                    if not header["final"]:
                        raise WorkerError("rank 0 ended without a result; see its own message")
                    return vectors
                self._obey(header, vectors)
                del vectors  # before those of the next round come
        except Lost as e:
            self._end(healthy=False)
            raise WorkerError(f"rank {self.group.rank} lost its group: {e}; see rank 0's own message, then "
                              "continue the run with `fedlearn resume`") from e

    def _obey(self, header: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> None:
        """Do what a command of a round asks for; an error is rank 0's to raise, the next command may well come."""
        if "reduce" in header:
            assert self.share is not None
            at("reduce", self.share.round)
            self.share.reduce(header["reduce"])
            self.share = None
            return
        if "again" not in header:
            self.share = None
            work, clients = from_header(header, vectors), header["shares"][self.rank]
            at("receive", work.round)
            self.share = Share(self.group, self.worker, work, clients, header["wire"])
        assert self.share is not None
        self.group.gather(self.share.said, header.get("again") or header["room"])
        at("idle", self.share.round)

    def close(self, final: Mapping[str, Tensor] | None = None) -> None:
        """Leave the group; safe to call twice."""
        self._end(healthy=False)

    def _end(self, healthy: bool) -> None:
        if self.open:
            self.open = False
            self.group.close(healthy)


def main() -> int:
    """Be a rank that the coordinator of this machine started."""
    # Whatever anybody prints goes where the coordinator looks for last words.
    answer = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(os.dup(0), "rb", buffering=0) as stdin:
        hello = json.loads(stdin.readline())
    Thread(target=_end_with_the_coordinator, daemon=True).start()
    if hello["parent"] and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    setup = unpack(Path(hello["parcel"]).read_bytes())
    os.write(answer, b"ready\n")
    os.close(answer)
    try:
        store = dist.TCPStore("127.0.0.1", hello["port"], hello["world"], False,
                              timedelta(seconds=hello["timeout"]), wait_for_workers=False)
        group = Group(store, hello["rank"], hello["world"], hello["timeout"], hello["interface"],
                      device=choose(hello["device"], setup.task, hello["rank"], hello["world"]))
        Rank(group, enter(group, setup, composed=False)).serve()
    except (Lost, RuntimeError, FedlearnError):
        # Rank 0 knows: it has been told, or it has lost this rank's connection.
        traceback.print_exc()
        return LOST
    return 0


def _end_with_the_coordinator() -> None:
    while os.read(0, 1):
        pass
    os._exit(LOST)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to tidy, and taking torch down takes a second
