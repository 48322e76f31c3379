"""The open actors of a run: they are started, met, replaced and ended here."""

from __future__ import annotations

import logging
import os
import shutil
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contracts import Msg, ServerAlgorithm
from ...errors import ConfigError, WorkerError
from ...vectors import tree_flat
from ...work import SUMS, Event, Reduced, Setup, Work, bytes_of
from ...worker.states import States
from ..device import unlike, words
from ..holders import Runs
from ..parcel import pack, short_folder
from ..start import START
from . import cluster
from .actor import SMALL, Actor
from .cluster import NICENESS, Watch, last_line
from .gpus import kinds
from .machines import Machine, Machines
from .seat import Seat
from .turn import AT_ONCE, PIECE, Turn

if TYPE_CHECKING:
    from .backend import RayActors

log = logging.getLogger("fedlearn")

PATIENCE = 3    # a replacement may take so many times as long to come up as the first actors


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
        self.watch = Watch(api(), backend.timeout)
        self.startup = max(backend.timeout, START)
        # Also when the caller forgets to close.
        self.clean = weakref.finalize(self, _clean, False, self.folder, quiet)
        try:
            self.own = _connect(backend, setup, self.folder)
            self.clean.detach()
            self.clean = weakref.finalize(self, _clean, self.own, self.folder, quiet)
            quiet.enter_context(cluster.hushed(api()))
            self.watch = Watch(api(), backend.timeout)
            initial = setup.task.initial(setup.seed)
            self.states: States | None = None
            if isinstance(setup.algorithm, ServerAlgorithm):
                template = setup.algorithm.client_init(initial)
                if setup.states is None and tree_flat(template):
                    setup = replace(setup, states=self.folder / "states")
                self.states = States(template, setup.states, through=True)
            self.setup = setup
            # A cluster of our own is this machine: large arrays are shared as files.
            self.parcel = api().put(pack(setup, self.folder if self.own else None))
            places: Sequence[Machine | None] = [None] * backend.workers
            if not self.own and getattr(setup.task, "holds", None) is not None:
                self.machines = Machines(api(), setup.task, backend.threads)
                places = self.machines.start(backend.workers, self.startup)
            gpus = int(api().cluster_resources().get("GPU", 0))
            self.seats = [Seat(i + 1, self._start(there, kind), machine=there, kind=kind) for i, (there, kind) in
                          enumerate(zip(places, kinds(backend.devices, setup.task, gpus, places), strict=True))]
            self._await_actors()
            devices = [seat.device for seat in self.seats]
            log.info("%d actor%s: %s", len(devices), "s" * (len(devices) > 1), words(devices))
            if unlike(devices):     # the last bits of the result depend on who works on what
                self.happened.append({"event": "unlike devices", "devices": list(map(str, devices))})
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
            return Turn(api(), self, work, f"{work.key}/{self.rounds}").run()
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
        if api().is_initialized():
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
            if self.backend.devices == "auto":
                taken = sum(s.kind == "cuda" and s.machine == there for s in self.seats if s is not seat)
                seat.kind, = kinds("auto", self.setup.task, 0, [replace(there, gpus=there.gpus - taken)])
        seat.actor, seat.since = self._start(there, seat.kind), time.monotonic()
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
        seat.pid, seat.device, held, common = said
        seat.hello, seat.holds = None, None if held is None else Runs(held)
        if self.machines is not None:
            self.machines.meet(seat, common)

    def _kill(self, seat: Seat, politely: bool = True) -> None:
        if self.own:
            cluster.kill_outright(api(), seat.pid)
        if politely and seat.actor is not None:
            with suppress(Exception):
                api().kill(seat.actor)

    def _start(self, there: Machine | None, kind: str) -> Any:
        where = {"scheduling_strategy": api().util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            there.node, soft=False)} if there else {}
        remote = api().remote(num_cpus=self.backend.threads, num_gpus=int(kind == "cuda"), max_restarts=0,
                               max_task_retries=0, concurrency_groups={"health": 1}, **where)
        return remote(Actor).remote(self.parcel, fetch, kind)

    def _await_actors(self) -> None:
        ray, began = api(), time.monotonic()
        waiting = [seat.actor.hello.remote() for seat in self.seats]
        ready, rest = ray.wait(waiting, num_returns=len(waiting), timeout=self.startup)
        if rest:
            cores = ray.cluster_resources().get("CPU", 0)
            raise WorkerError(f"{len(ready)} of {self.backend.workers} Ray actors came up within "
                              f"{self.startup:g} s (the cluster has {cores:g} CPUs in all, each actor takes "
                              f"{self.backend.threads}); use fewer backend.workers, or raise backend.timeout")
        for seat, said in zip(self.seats, waiting, strict=True):
            try:
                self.meet(seat, ray.get(said))
            except ray.exceptions.RayError as e:
                where = f" at {seat.machine.address}" if seat.machine else ""
                raise WorkerError(f"a Ray actor{where} died at its start: {last_line(e)}") from e
        self.startup = max(self.startup, PATIENCE * (time.monotonic() - began))


def _clean(own: bool, folder: Path, quiet: ExitStack) -> None:
    try:
        if own:
            cluster.stop(api())
    finally:
        quiet.close()
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)  # the last of Ray's processes may still be writing


def fetch(reference: Any) -> Any:
    """Return what a reference stands for; for actors."""
    return api().get(reference)


def _connect(backend: RayActors, setup: Setup, folder: Path) -> bool:
    """Connect to a cluster; return whether it was started here."""
    ray = api()
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


def api() -> Any:
    try:
        # Ray takes a driver's parent for its raylet, unless it is told another process: with the raylet gone it would
        # end an orphan in the middle of closing.
        with cluster.environment({"RAY_RAYLET_PID": os.environ.get("RAY_RAYLET_PID", str(os.getpid()))}):
            import ray
    except ImportError as e:
        raise ConfigError("backend", "ray", "an installed Ray", "Install it: pip install 'fedlearn[ray]'.") from e
    return ray
