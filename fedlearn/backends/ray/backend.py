"""Ray actors with a dynamic queue: whoever is free takes the next clients, longest work first.

Each actor holds the setup and adds what its clients upload to a partial sum of the round, which it
hands over at the end. An actor that dies takes its partial sum with it: another one replaces it, and
all clients that it had in the round run again, so that nobody counts twice or is missed. Ray itself
restarts and retries nothing.

What a round broadcasts lies once in the shared memory of every host, and all actors there read it in place; what is
small travels with each call.
"""

from __future__ import annotations

import os
import shutil
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ...contracts import Msg, ServerAlgorithm
from ...errors import ConfigError, WorkerError, in_range
from ...vectors import tree_flat
from ...work import SUMS, Event, Reduced, Setup, Work, bytes_of
from ...worker.states import States
from ..holders import Runs
from ..parcel import pack, short_folder
from . import cluster
from .actor import SMALL, Actor
from .cluster import NICENESS, Watch, last_line
from .machines import Machine, Machines
from .seat import Seat
from .turn import AT_ONCE, PIECE, Turn

PATIENCE = 3    # a replacement may take so many times as long to come up as the first actors, and its timeout


@dataclass(frozen=True)
class RayActors:
    """Run clients on ``workers`` Ray actors of ``threads`` threads each.

    A cluster is joined where ``address``, or else RAY_ADDRESS, names one, or the process is connected
    to one already, and is then left running; otherwise one is started on this machine, which strangers cannot use.
    ``token`` is the path of a file with the token that a cluster to be joined asks for; null takes what Ray finds in
    its own environment variables. ``chunk`` clients are handed out at a time; 0 chooses: many at first, one at a time
    at the end. An actor that gives no sign of life for ``timeout`` seconds is taken for dead, and so is one whose work
    takes no local step for ``hang`` seconds (0 or None: it may); ``replacements`` may be made in a round.
    Where machines have data of their own, every machine gets an actor before one gets a second.
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
    hang: float | None = 600.0
    token: str | None = None

    verbs: ClassVar[frozenset[str]] = frozenset({"map_reduce"})

    def __post_init__(self) -> None:
        in_range("backend.workers", self.workers, least=1)
        in_range("backend.threads", self.threads, least=1)
        in_range("backend.chunk", self.chunk, least=0)
        in_range("backend.timeout", self.timeout, above=0)
        in_range("backend.replacements", self.replacements, least=0)
        if self.hang is not None:
            in_range("backend.hang", self.hang, least=0)
        if self.niceness is not None:
            in_range("backend.niceness", self.niceness, least=0, most=19, whole=True)

    def open(self, setup: Setup) -> RayWorkers:
        """Start or join a cluster, and the actors on it.

        Raises:
            ConfigError: if Ray is not installed, the niceness of a cluster that runs already is to be set, or there is
                a token for none.
            WorkerError: if the cluster cannot be reached, refuses the token, or has no room for the actors.
        """
        _ray()
        return RayWorkers(self, replace(setup, threads=self.threads))

    def describe(self) -> str:
        """Say what runs where."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        where = f"the cluster at {address}" if address else "this machine"
        plural = "s" * (self.workers > 1), "s" * (self.threads > 1)
        return f"{self.workers} Ray actor{plural[0]} on {where}, {self.threads} thread{plural[1]} each"


class RayWorkers:
    """Open actors on a cluster."""

    rank = 0

    def __init__(self, backend: RayActors, setup: Setup) -> None:
        self.backend, self.rounds, self.opened = backend, 0, True
        self.happened: list[Event] = []
        self.folder = short_folder()
        self.seats: list[Seat] = []
        self.machines: Machines | None = None   # where each has data of its own
        self.own, quiet = False, ExitStack()
        self.watch = Watch(_ray(), backend.timeout)
        self.startup = backend.timeout
        # Also when the caller forgets to close.
        self.clean = weakref.finalize(self, _clean, False, self.folder, quiet)
        try:
            self.own = _connect(backend, setup, self.folder)
            self.clean.detach()
            self.clean = weakref.finalize(self, _clean, self.own, self.folder, quiet)
            quiet.enter_context(cluster.hushed(_ray()))
            self.watch = Watch(_ray(), backend.timeout)
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
            places: Sequence[Machine | None] = [None] * backend.workers
            if not self.own and getattr(setup.task, "holds", None) is not None:
                self.machines = Machines(_ray(), setup.task, backend.threads)
                places = self.machines.start(backend.workers, backend.timeout)
            self.seats = [Seat(i + 1, self._start(there), machine=there) for i, there in enumerate(places)]
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
            there = not self.own and self.watch.there()     # who is gone cannot be told to kill
            for seat in self.seats:
                self._kill(seat, there)
        self.seats, self.parcel = [], None
        self.clean()

    def replace(self, seat: Seat, there: Machine | None = None) -> None:
        """Put a new actor on a seat, ``there`` if that is said; where its machine is gone, the seat may stay empty."""
        self._kill(seat)
        seat.actor, seat.hello, seat.pid, seat.steps = None, None, 0, None
        if self.machines is not None:
            if there is None and self.watch.silent is None:     # a GCS that does not answer cannot be asked
                there = self.machines.place(seat, self.seats, self.machines.there())
            if there is None:
                return
            seat.machine = there
        seat.actor, seat.since = self._start(there), time.monotonic()
        seat.hello = seat.actor.hello.remote()

    def settle(self) -> None:
        """Find a machine for who has none, and another one for who is not up yet and whose machine is gone."""
        assert self.machines is not None
        there = self.machines.there()
        for seat in self.seats:
            gone = seat.machine is not None and seat.machine.node not in there
            if seat.actor is None or seat.hello is not None and gone:
                self.replace(seat)

    def meet(self, seat: Seat, said: Any) -> None:
        """Note the first word of an actor.

        Raises:
            DataError: if its machine does not know the same of all clients as this one.
        """
        seat.pid, held, common = said
        seat.hello, seat.holds = None, None if held is None else Runs(held)
        if self.machines is not None:
            self.machines.meet(seat, common)

    def _kill(self, seat: Seat, politely: bool = True) -> None:
        if self.own:
            cluster.kill_outright(_ray(), seat.pid)
        if politely and seat.actor is not None:
            with suppress(Exception):
                _ray().kill(seat.actor)

    def _start(self, there: Machine | None) -> Any:
        where = {"scheduling_strategy": _ray().util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            there.node, soft=False)} if there else {}
        remote = _ray().remote(num_cpus=self.backend.threads, max_restarts=0, max_task_retries=0,
                               concurrency_groups={"health": 1}, **where)
        return remote(Actor).remote(self.parcel, fetch)

    def _await_actors(self) -> None:
        ray, began = _ray(), time.monotonic()
        waiting = [seat.actor.hello.remote() for seat in self.seats]
        ready, rest = ray.wait(waiting, num_returns=len(waiting), timeout=self.backend.timeout)
        if rest:
            cores = ray.cluster_resources().get("CPU", 0)
            raise WorkerError(f"{len(ready)} of {self.backend.workers} Ray actors came up within "
                              f"{self.backend.timeout:g} s (the cluster has {cores:g} CPUs in all, each actor takes "
                              f"{self.backend.threads}); use fewer backend.workers, or raise backend.timeout")
        for seat, said in zip(self.seats, waiting, strict=True):
            try:
                self.meet(seat, ray.get(said))
            except ray.exceptions.RayError as e:
                where = f" at {seat.machine.address}" if seat.machine else ""
                raise WorkerError(f"a Ray actor{where} died at its start: {last_line(e)}") from e
        self.startup = max(self.backend.timeout, PATIENCE * (time.monotonic() - began))


def _clean(own: bool, folder: Path, quiet: ExitStack) -> None:
    try:
        if own:
            cluster.stop(_ray())
    finally:
        quiet.close()
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)  # the last of Ray's processes may still be writing


def fetch(reference: Any) -> Any:
    """Return what a reference stands for; for actors."""
    return _ray().get(reference)


def _connect(backend: RayActors, setup: Setup, folder: Path) -> bool:
    """Connect to a cluster; return whether it was started here."""
    ray = _ray()
    address = backend.address or os.environ.get("RAY_ADDRESS")
    if backend.niceness is not None and (address or ray.is_initialized()):
        raise ConfigError("backend.niceness", backend.niceness, "null with a cluster that runs already",
                          f"Start that with {NICENESS}={backend.niceness} in the environment.")
    if backend.token is not None and (not address or ray.is_initialized()):
        raise ConfigError("backend.token", backend.token, "null, unless backend.address names a cluster to be joined",
                          "A cluster that is started here has a token of its own.")
    if ray.is_initialized():
        return False
    if address:
        cluster.join(ray, address, backend.token)
        return False
    # Broadcasts of two rounds and pieces of sums; Ray's own default is 30% of the memory.
    store = 128 * 2**20 + 3 * _down(setup) + 8 * (2 * AT_ONCE * PIECE + backend.workers * SMALL)
    cluster.start(ray, backend.workers * backend.threads, store, folder / "ray", backend.niceness or 0)
    return True


def _down(setup: Setup) -> int:
    """Return the bytes of a broadcast."""
    assert isinstance(setup.algorithm, ServerAlgorithm)
    return bytes_of(setup.algorithm.broadcast(setup.algorithm.server_init(setup.task.initial(setup.seed))))


def _ray() -> Any:
    try:
        # Ray takes a driver's parent for its raylet, unless it is told another process: with the raylet gone it would
        # end an orphan in the middle of closing.
        with cluster.environment({"RAY_RAYLET_PID": os.environ.get("RAY_RAYLET_PID", str(os.getpid()))}):
            import ray
    except ImportError as e:
        raise ConfigError("backend", "ray", "an installed Ray", "Install it: pip install 'fedlearn[ray]'.") from e
    return ray
