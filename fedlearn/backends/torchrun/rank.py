"""What ranks above 0 do: they set their worker up as rank 0 says, and serve it until it closes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from torch import Tensor

from ...errors import ConfigError, WorkerError
from ...faults import at
from ...work import Setup
from ...worker.worker import Worker
from ..device import placed
from ..gather import decode, encode
from ..holders import Runs, runs
from .agree import fingerprint
from .group import Group
from .lost import Lost
from .pulse import Ear, Toil
from .share import Share, from_header
from .store import Store


def enter(group: Group, setup: Setup, refused: ConfigError | None = None) -> Worker:
    """Set this rank's worker up as rank 0 says; every rank that composed its own setup calls it once.

    ``refused`` is why this rank cannot have the device that was asked for: all ranks raise that.

    Raises:
        WorkerError: if a rank has another setup than rank 0.
        FedlearnError: the same at every rank, if a worker could not be made.
    """
    own = fingerprint(setup)
    if group.rank == 0:
        group.send({"states": None if setup.states is None else str(setup.states), "digest": own}, {})
        header: dict[str, Any] = {"digest": own}
    else:
        header, _ = group.receive()
        setup = replace(setup, states=None if header["states"] is None else Path(header["states"]))
    error: Exception | None = None
    try:
        if refused is not None:
            raise refused
        if own != header["digest"]:
            raise WorkerError(f"rank {group.rank} has another setup than rank 0 ({own[:12]}, not "
                              f"{header['digest'][:12]}); start all ranks with the same command, code "
                              "and data")
        worker = Worker(placed(setup, group.device), through=group.world > 1)
    except Exception as e:
        error = e
    told = group.all({"error": error and encode(error, f"rank {group.rank}"), "holds": runs(setup.task)})
    failures = [decode(words["error"]) for words in told if words["error"]]
    if error is not None and group.rank == 0:
        raise error
    if failures:
        raise failures[0]
    if any(words["holds"] is not None for words in told):
        group.holds = [None if words["holds"] is None else Runs(words["holds"]) for words in told]
    return worker


def serve(group: Group, worker: Worker, toil: Toil,
          working: Callable[[], AbstractContextManager[None]] = nullcontext) -> dict[str, Tensor] | None:
    """Work as rank 0 asks; return the named tensors that it closes the group with, if it does with any.

    A share is done within ``working``.

    Raises:
        Lost: if rank 0, or another rank that is needed, is gone.
    """
    group.pulse.toil = toil
    share: Share | None = None
    while True:
        header, vectors = group.receive()
        if "final" in header:
            group.barrier()
            return vectors if header["final"] else None
        if "reduce" in header:
            assert share is not None
            at("reduce", share.round)
            share.reduce(header["reduce"])
            share = None
            continue
        if "again" not in header:
            share = None
            work, clients = from_header(header, vectors), header["shares"][group.rank]
            at("receive", work.round)
            with working(), toil.on(work.round, clients):
                share = Share(group, worker, work, clients, header["wire"])
            del work
        assert share is not None
        group.gather(share.said, header.get("again") or header["room"])
        at("idle", share.round)
        del vectors  # before those of the next round come


class Rank:
    """A rank above 0 under torchrun: it serves until rank 0 closes."""

    def __init__(self, group: Group, worker: Worker, store: Store) -> None:
        self.group, self.worker, self.store, self.open = group, worker, store, True
        self.rank = group.rank
        self.toil = Toil(worker)
        self.ear = Ear(group.store, [0])

    def serve(self) -> dict[str, Tensor]:
        """Work as rank 0 asks; return the named tensors that it passed to ``close``.

        SIGTERM and SIGINT go to all processes of a job; they are rank 0's to heed, and this rank ends with it.

        Raises:
            WorkerError: if rank 0, or another rank that is needed, is gone, or rank 0 closed without
                a result.
        """
        self.group.pulse.each, self.group.pulse.gone = self._listen, self._end_with_rank_0
        why = ""
        with self._deaf():
            try:
                final = serve(self.group, self.worker, self.toil)
            except Lost as e:
                why = str(e)
        if why:
            self._end(healthy=False)
            raise WorkerError(f"rank {self.rank} lost its group: {why}; see rank 0's own message, then "
                              "continue the run with `fedlearn resume`")
        self._end(healthy=True)
        if final is None:
            raise WorkerError("rank 0 ended without a result; see its own message")
        return final

    def close(self, final: Mapping[str, Tensor] | None = None) -> None:
        """Leave the group; safe to call twice."""
        self._end(healthy=False)

    def _end(self, healthy: bool) -> None:
        if self.open:
            self.open = False
            self.group.close(healthy, patience=0.0)
            self.store.close()

    @contextmanager
    def _deaf(self) -> Iterator[None]:
        """Do not hear the signals that ask for an end."""
        if current_thread() is not main_thread():   # whose business signals are
            yield
            return
        asking = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT
        before = {number: signal.signal(number, signal.SIG_IGN) for number in asking}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _listen(self) -> None:
        if self.ear.silent(self.group.timeout, self.group.interval):
            self._end_with_rank_0()

    def _end_with_rank_0(self) -> None:
        """End this process, as rank 0 is gone, if this rank is at work, which may be long."""
        if self.toil.busy:
            print(f"error: rank {self.rank}: rank 0 is gone; continue the run with `fedlearn resume`",
                  file=sys.stderr, flush=True)
            os._exit(WorkerError.code)
