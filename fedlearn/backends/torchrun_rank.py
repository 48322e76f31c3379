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
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..errors import FedlearnError, WorkerError
from ..reducers.layout import Layout
from ..work import SUMS, Record, Reduced, Setup, Work
from ..worker import Worker
from .gather import agree, check_bound, decode, encode, first, in_order
from .parcel import unpack
from .torchrun_agree import fingerprint
from .torchrun_children import LOST
from .torchrun_device import choose, moved, placed
from .torchrun_group import Group, Lost


@dataclass(frozen=True)
class Plan:
    """A local plan that was worked out elsewhere: samples -> (steps, batch size)."""

    table: Mapping[int, tuple[int, int]]

    def steps_for(self, samples: int) -> int:
        """Return K for a client with so many samples."""
        return self.table[samples][0]

    def batch_for(self, samples: int) -> int:
        """Return the size of a full mini-batch for a client with so many samples."""
        return self.table[samples][1]


def to_header(work: Work, shares: Sequence[Sequence[int]], sizes: Any) -> dict[str, Any]:
    """Return all of a work but its vectors, as JSON can carry it."""
    samples = sorted({int(sizes[client]) for client in work.clients})
    plan = [[n, work.local.steps_for(n), work.local.batch_for(n)] for n in samples]
    return {"round": work.round, "key": work.key, "clients": [int(m) for m in work.clients],
            "weights": [float(w) for w in work.weights], "plan": plan,
            "versions": [[int(m), int(v)] for m, v in work.versions.items()],
            "shares": [[int(m) for m in share] for share in shares]}


def from_header(header: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> Work:
    """Rebuild the work that ``to_header`` described."""
    plan = Plan({n: (steps, batch) for n, steps, batch in header["plan"]})
    return Work(header["round"], header["key"], vectors, header["clients"], header["weights"], plan,
                dict(header["versions"]))


def take_part(group: Group, worker: Worker, work: Work, shares: Sequence[Sequence[int]]
              ) -> Reduced | Exception:
    """Run this rank's share and add all shares up at rank 0; every rank calls it.

    What each rank did is known to all before the vectors move, so that after an error nobody is left
    waiting for a sum: an error that all ranks agree on is returned, and they can go on.

    Raises:
        Lost: if a rank is gone.
    """
    total = SUMS[worker.setup.reduce]()
    records: list[Record] = []
    mine: Exception | None = None
    try:
        records = worker.reduce(moved(work, group.device), shares[group.rank], total)
    except Exception as e:
        mine = e
    total.carry()
    layout = None if total.layout is None else total.layout.parts
    status = {"records": [asdict(r) for r in records], "layout": layout, "bound": total.bound,
              "error": None if mine is None else encode(mine, f"rank {group.rank}")}
    everyone = group.all(status)
    failures = [decode(s["error"]) for s in everyone if s["error"]]
    if failures:
        worst = first(failures, work)
        # An error of this very rank keeps its traceback.
        return mine if mine is not None and encode(mine, f"rank {group.rank}") == encode(worst, "") else worst
    try:
        shape = agree([s["layout"] and Layout.from_json(s["layout"]) for s in everyone], shares, work)
        check_bound([s["bound"] for s in everyone], shares, work)
    except FedlearnError as e:
        return e
    if shape is not None:
        if total.layout is None:
            total.shape_as(shape)
        total.buffer = group.reduce(total.buffer).cpu()
        total.bound = sum(s["bound"] for s in everyone)
    return Reduced(total, in_order((Record(**r) for s in everyone for r in s["records"]), work))


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
                # An error of a round is rank 0's to raise; the next command may well come.
                take_part(self.group, self.worker, from_header(header, vectors), header["shares"])
        except Lost as e:
            self._end(healthy=False)
            raise WorkerError(f"rank {self.group.rank} lost its group: {e}; see rank 0's own message, then "
                              "continue the run with `fedlearn resume`") from e

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
