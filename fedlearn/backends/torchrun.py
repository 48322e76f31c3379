"""Ranks of ``torch.distributed``: started by torchrun, or by the coordinator on its own machine.

Rank 0 is the coordinator: it is the calling process, runs the protocol, and works on clients like
every other rank, unless it is ``dedicated``. A round of a small model is two collectives: a command with
the broadcast vectors out, and a status with the partial sum from every rank to rank 0. Large vectors are
broadcast by themselves, once per host, and large partial sums reduced after rank 0 has seen that nobody failed.
Nothing that is sent between ranks is a pickle.

Under torchrun (or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) every rank
composes the same setup and opens the backend; ranks above 0 then ``serve()`` until rank 0 closes.
Otherwise ``workers - 1`` child processes are started, on loopback, and end with the coordinator.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from threading import current_thread, main_thread
from typing import ClassVar

import torch.distributed as dist
from torch import Tensor

from ..contracts import ServerAlgorithm
from ..errors import ConfigError, FedlearnError, WorkerError, in_range, one_of
from ..vectors import tree_flat
from ..work import SUMS, Event, Reduced, Setup, Work, cost
from ..worker import Worker
from .balance import balance
from .parcel import pack
from .torchrun_bundle import room_for
from .torchrun_children import Child, await_ready, bind, culprit, end
from .torchrun_device import check_device, choose, words
from .torchrun_group import Group, Lost
from .torchrun_rank import Rank, Share, conduct, enter, to_header

LOOPBACK = "lo" if os.uname().sysname == "Linux" else "lo0"
WIRES = ("float32", "bf16")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
opened = count()  # the groups of this process: all ranks open them in the same order


@dataclass(frozen=True)
class Torchrun:
    """Run clients on ``torch.distributed`` ranks; ``describe`` says which.

    ``workers`` counts the ranks, the caller included, where they are started from here; under
    torchrun there are WORLD_SIZE of them. ``threads`` is per rank. A rank that gives no sign of
    life for ``timeout`` seconds is taken for lost; one that merely works long is waited for.
    ``device`` is "cpu", "cuda" (a GPU of its own for every rank, and NCCL) or "auto", which takes
    GPUs where there are enough and the task can use them.
    ``port`` of the rendezvous on loopback, 0 for any free one, is not used under torchrun.

    ``wire`` "bf16" halves the bytes of the partial sums that ranks send to rank 0, where they are added in
    float32: each is rounded once, by at most 2^-8 of an entry. It goes with reduce=fast only, since the
    rounding depends on which clients share a rank. What rank 0 broadcasts stays float32: clients send
    differences from it, which a rounded model would drown. The bytes that a run reports are those of the
    clients' payloads, which do not change; partial sums are this backend's own business.

    With ``dedicated`` rank 0 works on no client: the others share them, and rank 0's memory holds no
    client's vectors beside the server state and the sum.
    """

    workers: int = 2
    threads: int = 1
    device: str = "auto"
    timeout: float = 60.0
    port: int = 0
    wire: str = "float32"
    dedicated: bool = False

    verbs: ClassVar[frozenset[str]] = frozenset({"map_reduce"})

    def __post_init__(self) -> None:
        in_range("backend.workers", self.workers, least=1)
        in_range("backend.threads", self.threads, least=1)
        in_range("backend.timeout", self.timeout, above=0, most=10**6)
        in_range("backend.port", self.port, least=0, most=65535)
        check_device(self.device)
        if self.wire not in WIRES:
            raise ConfigError("backend.wire", self.wire, one_of(WIRES, str(self.wire)))
        if self.dedicated and self.ranks() == 1:
            raise ConfigError("backend.dedicated", True, "false with one rank", "Nobody would work.")

    @staticmethod
    def rank() -> int:
        """Return this process's rank: 0 if it is the coordinator, or was not started by torchrun."""
        return int(os.environ["RANK"]) if under_torchrun() else 0

    def ranks(self) -> int:
        """Return how many ranks there are, rank 0 included."""
        return int(os.environ["WORLD_SIZE"]) if under_torchrun() else self.workers

    def open(self, setup: Setup) -> Coordinator | Rank:
        """Bring all ranks up; at ranks above 0, which must then ``serve()``, under torchrun only.

        Raises:
            WorkerError: if a rank dies at start, stays silent for ``timeout`` seconds, or was given
                another setup.
            ConfigError: if the port is taken, the device cannot be had, or an exact sum was to cross as bf16.
        """
        if self.wire != "float32" and setup.reduce == "exact":
            raise ConfigError("backend.wire", self.wire, "float32 with reduce=exact",
                              "An exact sum crosses as integers; rounded ones would depend on who shares a rank.")
        setup = replace(setup, threads=self.threads)
        return join(self, setup) if under_torchrun() else launch(self, setup)

    def describe(self) -> str:
        """Say what runs where."""
        each = f"{self.threads} thread{'s' * (self.threads > 1)} each"
        each += ", rank 0 coordinates only" * self.dedicated + f", sums as {self.wire}" * (self.wire != "float32")
        if under_torchrun():
            return (f"{os.environ['WORLD_SIZE']} ranks started by torchrun (backend.workers is not used), "
                    f"{words(self.device, _local()[1])}, {each}")
        if self.workers == 1:
            return f"1 rank in this process, {words(self.device, 1)}, {each}"
        return (f"{self.workers} ranks on this machine, started from here, "
                f"{words(self.device, self.workers)}, {each}")


class Coordinator:
    """Rank 0 of an open group, with the child processes that it started (if it did)."""

    def __init__(self, backend: Torchrun, group: Group, worker: Worker, children: Sequence[Child],
                 folder: Path) -> None:
        self.backend, self.group, self.worker, self.children = backend, group, worker, children
        self.room = room_for(0)   # of the ranks' answers
        self.largest = int(worker.setup.task.sizes.max())
        self.setup, self.rank = worker.setup, 0
        self.healthy = True
        self.happened: list[Event] = []
        # Also when the caller forgets to close.
        self.clean = weakref.finalize(self, _clean, list(children), folder)

    def map_reduce(self, work: Work) -> Reduced:
        """Run the clients on all ranks, longest work first, and sum their uploads.

        Raises:
            ClientError: if a client's work failed; the group can go on with other work.
            WorkerError: if a rank is gone; the group can only be closed.
        """
        if not work.clients:
            return Reduced(SUMS[self.setup.reduce](), [])
        if not self.healthy:
            raise WorkerError("this group of ranks is broken or closed; open the backend anew")
        sizes = self.setup.task.sizes
        aside = int(self.backend.dedicated)
        shares = balance({m: cost(sizes, m, work.local) for m in work.clients}, self.group.world - aside)
        shares = [[] for _ in range(aside)] + shares
        header = to_header(work, shares, sizes, self.largest) | {"room": self.room, "wire": self.backend.wire}
        self.healthy = False  # until all ranks stand at the same place again
        try:
            self.group.send(header, work.broadcast)
            mine = Share(self.group, self.worker, work, shares[0], self.backend.wire)
            result, self.room = conduct(mine, work, shares, self.room)
        except Lost as e:
            raise WorkerError(f"{self._who(e)} in round {work.round}; continue the run with "
                              "`fedlearn resume`") from e
        self.healthy = True
        if isinstance(result, Exception):
            raise result
        return result

    def events(self) -> list[Event]:
        """Return what happened to the ranks since the last call."""
        happened, self.happened = self.happened, []
        return happened

    def commit(self, states: Sequence[tuple[int, int]], keep: Sequence[tuple[int, int]] | None = None) -> None:
        """Given ``keep``, delete all client states but these and those; they are on disk already."""
        if self.worker.states is not None:
            self.worker.states.flush(states)
            if keep is not None:
                self.worker.states.prune([*states, *keep])

    def close(self, final: Mapping[str, Tensor] | None = None) -> None:
        """End all ranks; safe to call twice, and after any error.

        ``final`` is what ``serve`` returns at ranks above 0.
        """
        if not self.clean.alive:
            return
        healthy, self.healthy = self.healthy, False
        try:
            if healthy:
                self.group.send({"final": final is not None}, final or {})
                self.group.barrier()
        except BaseException as e:
            healthy = False
            if not isinstance(e, Lost):
                raise
        finally:
            end(self.children, healthy)
            # Killed children fail every operation that waited for them, so the group can be destroyed.
            self.group.close(healthy or bool(self.children) or self.group.world == 1)
            self.clean()

    def _who(self, lost: Lost) -> str:
        fate = culprit(self.children, lost.silent)
        return fate or (str(lost) if lost.silent or self.children else
                        f"a rank is gone ({lost}; torchrun's own output names it)")


def _local() -> tuple[int, int]:
    """Return this rank's number on its machine, and how many ranks run there, under torchrun."""
    environ = os.environ
    rank, world = environ["RANK"], environ["WORLD_SIZE"]
    return int(environ.get("LOCAL_RANK", rank)), int(environ.get("LOCAL_WORLD_SIZE", world))


def under_torchrun() -> bool:
    """Return whether this process was started as a rank."""
    return all(name in os.environ for name in ENVIRONMENT)


def launch(backend: Torchrun, setup: Setup) -> Coordinator:
    """Start the other ranks as child processes and meet them on loopback."""
    world, timeout = backend.workers, backend.timeout
    folder = Path(tempfile.mkdtemp(prefix="fedlearn-"))
    children: list[Child] = []
    group = None
    try:
        setup = _with_states(setup, world, folder)
        listener = bind(backend.port)
        port = listener.getsockname()[1]
        store = dist.TCPStore("127.0.0.1", port, world, True, timedelta(seconds=timeout),
                              wait_for_workers=False, master_listen_fd=listener.detach(), use_libuv=True)
        arrays = folder / "setup"
        arrays.mkdir()
        if world > 1:
            (arrays / "parcel").write_bytes(pack(setup, arrays))
        device = choose(backend.device, setup.task, 0, world)
        hello = {"parcel": str(arrays / "parcel"), "port": port, "world": world, "timeout": timeout,
                 "interface": LOOPBACK, "device": backend.device, "parent": current_thread() is main_thread()}
        for rank in range(1, world):
            children.append(Child(rank, backend.threads))
            children[-1].tell(hello | {"rank": rank})
        await_ready(children, timeout)
        group = Group(store, 0, world, timeout, LOOPBACK, range(1, world), device)
        worker = enter(group, setup, composed=False)
        # Every rank has mapped the arrays: with states elsewhere, nothing is left if this process is killed.
        shutil.rmtree(arrays)
        if setup.states is None or setup.states.parent != folder:
            folder.rmdir()
        return Coordinator(backend, group, worker, children, folder)
    except BaseException as e:
        fate = culprit(children) if isinstance(e, Lost) else ""
        end(children, healthy=False)
        if group is not None:
            group.close()
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(e, Lost):
            raise WorkerError(f"{fate or e} (while the ranks were starting)") from e
        raise


def join(backend: Torchrun, setup: Setup) -> Coordinator | Rank:
    """Meet the ranks that torchrun started."""
    rank, world, timeout = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), backend.timeout
    folder = Path(tempfile.mkdtemp(prefix="fedlearn-")) if rank == 0 else None
    group = None
    try:
        (store, *_) = next(dist.rendezvous("env://", rank, world, timeout=timedelta(seconds=timeout)))
        store = dist.PrefixStore(f"fedlearn/{next(opened)}", store)
        device = choose(backend.device, setup.task, *_local())
        group = Group(store, rank, world, timeout, "", range(1, world) if rank == 0 else [0], device)
        if folder is not None:
            setup = _with_states(setup, world, folder)
        worker = enter(group, setup, composed=True)
        if folder is not None and (setup.states is None or setup.states.parent != folder):
            folder.rmdir()
        return Rank(group, worker) if folder is None else Coordinator(backend, group, worker, [], folder)
    except BaseException as e:
        if group is not None:
            group.close(healthy=isinstance(e, FedlearnError))
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(e, (Lost, dist.DistError)):
            raise WorkerError(f"rank {rank} of {world} could not join at {os.environ['MASTER_ADDR']}:"
                              f"{os.environ['MASTER_PORT']}: {e}") from e
        raise


def _with_states(setup: Setup, world: int, folder: Path) -> Setup:
    """Give ranks that share client states a folder for them, if the run has none."""
    if world == 1 or setup.states is not None or not isinstance(setup.algorithm, ServerAlgorithm):
        return setup
    if not tree_flat(setup.algorithm.client_init(setup.task.initial(setup.seed))):
        return setup
    return replace(setup, states=folder / "states")


def _clean(children: Sequence[Child], folder: Path) -> None:
    end(children, healthy=False)
    shutil.rmtree(folder, ignore_errors=True)
