"""Ranks of ``torch.distributed``: started by torchrun, or by the coordinator on its own machine.

Rank 0 is the coordinator: it is the calling process, runs the protocol, and works on clients like
every other rank, unless it is ``dedicated``. A round of a small model is two collectives: a command with
the broadcast vectors out, and a status with the partial sum from every rank to rank 0. Large vectors are
broadcast by themselves, once per host, and large partial sums reduced after rank 0 has seen that nobody failed.
Nothing that is sent between ranks is a pickle.

Under torchrun (or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) every rank
composes the same setup and opens the backend; ranks above 0 then ``serve()`` until rank 0 closes.
Otherwise ``workers - 1`` child processes are started, on loopback, and end with the coordinator. One that is lost is
replaced, and its round runs again; under torchrun that is the launcher's business.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist

from ...contracts import ServerAlgorithm
from ...errors import ConfigError, FedlearnError, WorkerError, in_range, one_of
from ...vectors import tree_flat
from ...work import Setup
from ...worker.worker import Worker
from ..device import check_devices, placed, words
from .children import culprit, muster
from .coordinator import Coordinator
from .device import ENTRY, EXAMPLE, choose
from .gang import Gang
from .group import Group
from .lost import Lost
from .meet import meet
from .pace import check_speeds
from .rank import Rank, enter

LOOPBACK = "lo" if os.uname().sysname == "Linux" else "lo0"
WIRES = ("float32", "bf16")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
opened = count()  # the groups of this process: all ranks open them in the same order


@dataclass(frozen=True)
class Torchrun:
    """Run clients on ``torch.distributed`` ranks; ``describe`` says which.

    ``workers`` counts the ranks, the caller included, where they are started from here; under
    torchrun there are WORLD_SIZE of them. ``threads`` is per rank. A rank that gives no sign of
    life for ``timeout`` seconds is taken for lost; one that merely works long is waited for, unless it takes no
    local step for ``hang`` seconds (0 or None: for ever). Of the ranks that were started from here, up to
    ``replacements`` are replaced in a round. If the coordinator itself takes no step for so long, it says where and
    ends the process with exit code 4.
    ``devices`` is "cpu", "cuda" (a GPU of its own for every rank), "auto", or a list with an entry for each rank, "cpu"
    or "cuda:N", the N-th GPU of its machine. "auto" decides machine by machine: GPUs where there is one for each of
    its ranks and the task can go there, else the CPU. ``speeds`` are what clients are shared out by: "auto" measures
    ranks at work and takes in what is plain, "equal" takes all for equal, a list has a number for each rank.
    ``port`` of the rendezvous on loopback, 0 for any free one, is not used under torchrun. ``token`` names a file with
    a secret that every host has: ranks that torchrun started on several hosts show by it that they belong together.

    ``wire`` "bf16" halves the bytes of the partial sums on their way to rank 0. They are added up in float32, and
    rounded where they cross, by at most 2^-8 of an entry: small ones once, large ones at every rank that passes
    them on. It goes with reduce=fast only, since the rounding depends on which clients share a rank. What rank 0
    broadcasts stays float32: clients send differences from it, which a rounded model would drown. The bytes that a
    run reports are those of the clients' payloads, which do not change; partial sums are this backend's own
    business.

    With ``dedicated`` rank 0 works on no client: the others share them, and rank 0's memory holds no
    client's vectors beside the server state and the sum.
    """

    workers: int = 2
    threads: int = 1
    devices: Any = "auto"
    timeout: float = 60.0
    port: int = 0
    wire: str = "float32"
    dedicated: bool = False
    hang: float | None = 600.0
    replacements: int = 3
    token: str | None = None
    speeds: Any = "auto"

    verbs: ClassVar[frozenset[str]] = frozenset({"map_reduce"})

    def __post_init__(self) -> None:
        in_range("backend.workers", self.workers, least=1)
        in_range("backend.threads", self.threads, least=1)
        in_range("backend.timeout", self.timeout, above=0, most=10**6)
        in_range("backend.hang", self.hang or 0.0, least=0, most=10**6)
        in_range("backend.replacements", self.replacements, least=0, whole=True)
        in_range("backend.port", self.port, least=0, most=65535)
        check_devices(self.devices, ENTRY, "cpu, or cuda:N", "rank", EXAMPLE)
        check_speeds(self.speeds, self.dedicated)
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
            ConfigError: if the port is taken, a device cannot be had, a list has not one entry per rank, or an exact
                sum was to cross as bf16.
        """
        ranks = self.ranks()
        for name, given in (("devices", self.devices), ("speeds", self.speeds)):
            if not isinstance(given, str) and len(given) != ranks:
                raise ConfigError(f"backend.{name}", list(given), f"a list with {ranks} entries, one for each rank",
                                  f"It has {len(given)}; say backend.{name}=auto, or list them anew.")
        if self.wire != "float32" and setup.reduce == "exact":
            raise ConfigError("backend.wire", self.wire, "float32 with reduce=exact",
                              "An exact sum crosses as integers; rounded ones would depend on who shares a rank.")
        setup = replace(setup, threads=self.threads)
        return join(self, setup) if under_torchrun() else launch(self, setup)

    def describe(self) -> str:
        """Say what runs where."""
        each = f"{self.threads} thread{'s' * (self.threads > 1)} each"
        each += ", rank 0 coordinates only" * self.dedicated + f", sums as {self.wire}" * (self.wire != "float32")
        if self.devices != "auto":
            each += f", on {self.devices if isinstance(self.devices, str) else words(self.devices)}"
        if self.speeds != "auto":
            given = self.speeds if isinstance(self.speeds, str) else ", ".join(f"{speed:g}" for speed in self.speeds)
            each += f", speeds {given}"
        if under_torchrun():
            return f"{os.environ['WORLD_SIZE']} ranks started by torchrun (backend.workers is not used), {each}"
        if self.workers == 1:
            return f"1 rank in this process, {each}"
        return f"{self.workers} ranks on this machine, started from here, {each}"


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
    world = backend.workers
    folder = Path(tempfile.mkdtemp(prefix="fedlearn-"))
    gang: Gang | None = None
    group: Group | None = None
    try:
        setup = _with_states(setup, world, folder)
        gang = Gang(backend, setup, LOOPBACK)
        gang.start(range(1, world))
        device = choose(backend.devices, setup.task, 0, 0, world)
        worker = Worker(placed(setup, device), through=world > 1)
        if failed := muster(gang.children, backend.timeout, gang.hang):
            child, why = failed
            raise child.error or WorkerError(f"{child.who} {why} (while the ranks were starting); free the machine, "
                                             "use fewer backend.workers, or raise backend.timeout")
        gang.unpacked()
        group = gang.form(device)
        if setup.states is None or setup.states.parent != folder:
            folder.rmdir()
        return Coordinator(backend, group, worker, gang, folder)
    except BaseException as e:
        fate = culprit(gang.children) if isinstance(e, Lost) and gang else ""
        if gang is not None:
            gang.close(healthy=False)
        if group is not None:
            group.close()
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(e, OSError):
            raise WorkerError(f"the ranks could not be started: {e}; free the machine, or use fewer "
                              "backend.workers") from e
        if isinstance(e, Lost):
            raise WorkerError(f"{fate or e} (while the ranks were starting)") from e
        raise


def join(backend: Torchrun, setup: Setup) -> Coordinator | Rank:
    """Meet the ranks that torchrun started."""
    rank, world, timeout = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), backend.timeout
    folder = Path(tempfile.mkdtemp(prefix="fedlearn-")) if rank == 0 else None
    group = store = refused = None
    try:
        store = meet(os.environ, backend.token, timeout, next(opened))
        try:
            device = choose(backend.devices, setup.task, rank, *_local())
        except ConfigError as e:
            device, refused = "cpu", e     # the others are to hear of it, which takes a group
        group = Group(store, rank, world, timeout, "", range(1, world) if rank == 0 else [0], device,
                      backend.hang or 0.0)
        if folder is not None:
            setup = _with_states(setup, world, folder)
        worker = enter(group, setup, refused)
        if folder is not None and (setup.states is None or setup.states.parent != folder):
            folder.rmdir()
        if folder is None:
            return Rank(group, worker, store)
        return Coordinator(backend, group, worker, None, folder, store)
    except BaseException as e:
        if group is not None:
            group.close(isinstance(e, FedlearnError), patience=0.0)
        if store is not None:
            store.close()
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
