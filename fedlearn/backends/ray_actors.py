"""Ray actors with a dynamic queue: whoever is free takes the next clients, longest work first.

Each actor holds the setup and adds what its clients upload to a partial sum of the round, which it
hands over at the end. An actor that dies takes its partial sum with it: another one replaces it, and
all clients that it had in the round run again, so that nobody counts twice or is missed. Ray itself
restarts and retries nothing.

What a round broadcasts lies once in the shared memory of every host, and all actors there read it in place.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..contracts import Msg, ServerAlgorithm
from ..errors import ConfigError, WorkerError, in_range
from ..faults import Dropped, at
from ..states import States
from ..vectors import tree_flat
from ..work import SUMS, Event, Part, Reduced, Setup, Sum, Work, bytes_of
from ..worker import Worker
from .gather import check_untouched, encode, versions
from .parcel import pack, short_folder, unpack
from .ray_turn import AT_ONCE, PIECE, Seat, Turn, last_line

SMALL = 1 << 16  # entries up to which a partial sum is handed over in one piece, with what is to be said of it
NICENESS = "RAY_worker_niceness"
# Ray nices its workers to 15 and counts users, unless it is told not to when its cluster starts.
QUIET = {NICENESS: "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
PROMPT = {"free_objects_period_milliseconds": 0}  # Ray gathers freed objects for a second: gigabytes here


@dataclass(frozen=True)
class RayActors:
    """Run clients on ``workers`` Ray actors of ``threads`` threads each.

    A cluster is joined where ``address``, or else RAY_ADDRESS, names one, or the process is connected
    to one already, and is then left running; otherwise one is started on this machine. ``chunk`` clients are handed out
    at a time; 0 chooses: many at first, one at a time at the end. An actor that gives no sign of
    life for ``timeout`` seconds is taken for dead; ``replacements`` may be made in a round.
    ``niceness`` (0 to 19) is that of the actors' processes; None takes 0 on a cluster that is started
    here, though Ray's own is 15, and a joined cluster as it is: there it cannot be set.
    """

    workers: int = 2
    address: str | None = None
    threads: int = 1
    chunk: int = 0
    timeout: float = 60.0
    replacements: int = 3
    niceness: int | None = None

    verbs: ClassVar[frozenset[str]] = frozenset({"map_reduce"})

    def __post_init__(self) -> None:
        in_range("backend.workers", self.workers, least=1)
        in_range("backend.threads", self.threads, least=1)
        in_range("backend.chunk", self.chunk, least=0)
        in_range("backend.timeout", self.timeout, above=0)
        in_range("backend.replacements", self.replacements, least=0)
        if self.niceness is not None:
            in_range("backend.niceness", self.niceness, least=0, most=19, whole=True)

    def open(self, setup: Setup) -> RayWorkers:
        """Start or join a cluster, and the actors on it.

        Raises:
            ConfigError: if Ray is not installed, or the niceness of a cluster that runs already is to be set.
            WorkerError: if the cluster cannot be reached, or has no room for the actors.
        """
        _ray()
        return RayWorkers(self, replace(setup, threads=self.threads))

    def describe(self) -> str:
        """Say what runs where."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        where = f"the cluster at {address}" if address else "this machine"
        plural = "s" * (self.workers > 1), "s" * (self.threads > 1)
        return f"{self.workers} Ray actor{plural[0]} on {where}, {self.threads} thread{plural[1]} each"


class Actor:
    """What runs in an actor: a worker, and the partial sum of the round that it works in."""

    def __init__(self, parcel: bytes) -> None:
        self.worker = Worker(unpack(parcel), through=True)
        self.token, self.round = "", 0
        self.work: Work | None = None
        self.sum: Sum = SUMS[self.worker.setup.reduce]()

    def alive(self) -> bool:
        """Answer, as soon as the actor is there, and also while it works."""
        return True

    def run(self, token: str, round: Sequence[Any], clients: Sequence[int]) -> Part | list:
        """Run clients of a round; ``round`` holds a reference to (work without vectors, vectors).

        Return what was done of it, or what ``encode`` makes of the error.
        """
        # Threads of an actor each have torch's own setting.
        torch.set_num_threads(self.worker.setup.threads)
        if token != self.token:
            self.token, self.work, self.sum = token, None, SUMS[self.worker.setup.reduce]()
        if self.work is None:
            work, arrays = _ray().get(round[0])
            self.work = replace(work, broadcast={name: _in_place(array) for name, array in arrays.items()})
            self.round = work.round
        try:
            at("receive", self.work.round)
            before = versions(self.work)
            part = self.worker.reduce(self.work, clients, self.sum)
            check_untouched(before, self.work, clients)
            at("upload", self.work.round)
            return part
        except Dropped:
            os._exit(1)     # its connection ends with it, as Ray sees it
        except Exception as e:
            return ["error", *encode(e, f"a Ray actor (process {os.getpid()})")]

    def collect(self, token: str) -> tuple[Any, float, np.ndarray | None]:
        """Return the parts of the layout and the bound of a round's partial sum, and all of it if it is small."""
        assert token == self.token and self.sum.layout is not None
        at("reduce", self.round)
        self.work = None
        self.sum.carry()
        small = self.sum.buffer.numel() <= SMALL
        return self.sum.layout.parts, self.sum.bound, self.sum.buffer.numpy() if small else None

    def piece(self, token: str, start: int, length: int) -> np.ndarray:
        """Return so many entries of a round's partial sum, which stays here until the next round."""
        assert token == self.token
        return self.sum.buffer[start:start + length].numpy()


class RayWorkers:
    """Open actors on a cluster."""

    rank = 0

    def __init__(self, backend: RayActors, setup: Setup) -> None:
        self.backend, self.rounds, self.opened = backend, 0, True
        self.happened: list[Event] = []
        self.folder = short_folder()
        self.seats: list[Seat] = []
        # Also when the caller forgets to close.
        self.clean = weakref.finalize(self, _clean, False, self.folder)
        try:
            self.own = _connect(backend, setup, self.folder)
            self.clean.detach()
            self.clean = weakref.finalize(self, _clean, self.own, self.folder)
            initial = setup.task.initial(setup.seed)
            self.states: States | None = None
            if isinstance(setup.algorithm, ServerAlgorithm):
                template = setup.algorithm.client_init(initial)
                if setup.states is None and tree_flat(template):
                    setup = replace(setup, states=self.folder / "states")
                self.states = States(template, setup.states, through=True)
            self.setup = setup
            # A cluster of our own is this machine: large arrays are shared as files.
            self.parcel = _ray().put(pack(setup, self.folder if self.own else None))
            self.seats = [Seat(self._start()) for _ in range(backend.workers)]
            self._await_actors()
        except BaseException:
            self.close()
            raise

    def map_reduce(self, work: Work) -> Reduced:
        """Run the clients on whichever actor is free, and sum their uploads.

        Raises:
            ClientError: if a client's work failed; the actors can go on with other work.
            WorkerError: if more actors died than may be replaced in a round.
        """
        if not self.opened:
            raise WorkerError("these Ray actors are closed; open the backend anew")
        if not work.clients:
            return Reduced(SUMS[self.setup.reduce](), [])
        self.rounds += 1
        try:
            return Turn(_ray(), self, work, f"{work.key}/{self.rounds}").run()
        finally:
            for seat in self.seats:
                seat.forget()

    def events(self) -> list[Event]:
        """Return what happened to the actors since the last call."""
        happened, self.happened = self.happened, []
        return happened

    def commit(self, states: Sequence[tuple[int, int]], keep: Sequence[tuple[int, int]] | None = None) -> None:
        """Given ``keep``, delete all client states but these and those; they are on disk already."""
        if self.states is not None and keep is not None:
            self.states.prune([*states, *keep])

    def close(self, final: Msg | None = None) -> None:
        """End the actors, and the cluster if it was started here; safe to call twice."""
        if not self.opened:
            return
        self.opened = False
        if _ray().is_initialized():
            for seat in self.seats:
                _ray().kill(seat.actor)
        self.seats, self.parcel = [], None
        self.clean()

    def replace(self, seat: Seat) -> None:
        """Put a new actor on a seat."""
        with suppress(Exception):
            _ray().kill(seat.actor)
        seat.actor = self._start()

    def _start(self) -> Any:
        remote = _ray().remote(num_cpus=self.backend.threads, max_restarts=0, max_task_retries=0,
                               concurrency_groups={"health": 1})
        return remote(Actor).remote(self.parcel)

    def _await_actors(self) -> None:
        ray = _ray()
        waiting = [seat.actor.alive.remote() for seat in self.seats]
        ready, rest = ray.wait(waiting, num_returns=len(waiting), timeout=self.backend.timeout)
        if rest:
            cores = ray.cluster_resources().get("CPU", 0)
            raise WorkerError(f"{len(ready)} of {self.backend.workers} Ray actors came up within "
                              f"{self.backend.timeout:g} s (the cluster has {cores:g} CPUs in all, each actor takes "
                              f"{self.backend.threads}); use fewer backend.workers, or raise backend.timeout")
        try:
            ray.get(ready)
        except ray.exceptions.RayError as e:
            raise WorkerError(f"a Ray actor died at its start: {last_line(e)}") from e


def _clean(own: bool, folder: Path) -> None:
    if own:
        _ray().shutdown()
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)  # the last of Ray's processes may still be writing


def _in_place(array: np.ndarray) -> Tensor:
    """Return a read-only array as a tensor on the same memory; its ``_version`` tells of writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing stops them
        return torch.from_numpy(array)


def _connect(backend: RayActors, setup: Setup, folder: Path) -> bool:
    """Connect to a cluster; return whether it was started here."""
    ray = _ray()
    address = backend.address or os.environ.get("RAY_ADDRESS")
    if backend.niceness is not None and (address or ray.is_initialized()):
        raise ConfigError("backend.niceness", backend.niceness, "null with a cluster that runs already",
                          f"Start that with {NICENESS}={backend.niceness} in the environment.")
    if ray.is_initialized():
        return False
    settings = QUIET | {NICENESS: str(backend.niceness or 0)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return False
        # Broadcasts of two rounds and pieces of sums; Ray's own default is 30% of the memory.
        store = 128 * 2**20 + 3 * _down(setup) + 8 * (2 * AT_ONCE * PIECE + backend.workers * SMALL)
        ray.init(address="local", num_cpus=backend.workers * backend.threads, object_store_memory=store,
                 include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                 _temp_dir=str(folder / "ray"), _system_config=PROMPT)
        return True
    except Exception as e:
        what = f"no Ray cluster at {address}" if address else "Ray did not start"
        raise WorkerError(f"{what}: {last_line(e)}") from e
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _down(setup: Setup) -> int:
    """Return the bytes of a broadcast."""
    assert isinstance(setup.algorithm, ServerAlgorithm)
    return bytes_of(setup.algorithm.broadcast(setup.algorithm.server_init(setup.task.initial(setup.seed))))


def _ray() -> Any:
    try:
        import ray
    except ImportError as e:
        raise ConfigError("backend", "ray", "an installed Ray", "Install it: pip install 'fedlearn[ray]'.") from e
    return ray
