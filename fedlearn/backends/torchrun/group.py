"""A process group for rounds: commands and vectors out, status and sums in, nobody waits forever.

A peer that dies closes its connections and is noticed at once. A peer that is silent (frozen, or cut off) is noticed
because its heartbeat in the rendezvous store stops, one that hangs in its work because its heartbeat says so; a peer
that is merely slow keeps beating and is waited for. What arrives altered is noticed, too. The group is built on the
c10d classes themselves, not on the process-wide default group: it meets no other group of the same process.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import AllgatherOptions

from ..device import Device
from .bundle import SMALL, SOME, Altered, bundle, checksum, length, room_for, unbundle
from .command import describe, restore
from .device import nccl, one_each
from .host import Host, Memory
from .line import RATE
from .lost import Lost, line_of
from .mesh import mesh
from .pulse import Ear, Pulse

FOREVER = timedelta(days=30)  # of an operation once connected: the heartbeat decides
SETTLED = 5.0        # seconds in which an operation ends when its peers are gone


class Group:
    """``world`` ranks that met at ``store``; ``watch`` are the ranks whose heartbeat this one checks.

    ``interface`` is the network interface to use (empty: gloo's choice, or GLOO_SOCKET_IFNAME).
    ``device`` is this rank's, ``devices`` are all ranks'. If each has a GPU of its own NCCL adds the sums up, else gloo
    in the hosts' memory. A watched rank that was at work for ``hang`` seconds without a step is taken for hung (0:
    never). While an operation lasts ``over`` is asked now and then why it cannot end, if known; "" is no reason.

    Raises:
        Lost: if a rank does not come within ``timeout`` seconds.
    """

    def __init__(self, store: Any, rank: int, world: int, timeout: float, interface: str = "",
                 watch: Sequence[int] = (), device: str = "cpu", hang: float = 0.0,
                 over: Callable[[], str] = str) -> None:
        self.store, self.rank, self.world, self.timeout, self.device = store, rank, world, timeout, device
        self.interface, self.interval, self.hang, self.over = interface, min(1.0, timeout / 4), hang, over
        self.room = room_for(0)   # of a command, the same at every rank
        self.gloo: Any = None
        self.nccl: Any = None
        self.devices: list[Device] = []
        self.commands, self.stuck = 0, False
        self.rate = RATE  # bytes a second over a link, as rank 0 last saw them: the same at every rank
        self.begun: list[Any] = []   # the operations that are not known to have ended
        self.answered = True   # whether nobody reads the last command's vectors any more
        self.parts: list[Any] = []   # the groups of some of the ranks
        self.host: Any = None        # comes last
        self.holds: Sequence[Container[int] | None] | None = None   # at rank 0: whose data each rank has; None: all
        self.ear = Ear(store, watch)
        self.pulse = Pulse(store, rank, self.interval, hang)
        try:
            self._meet()
        except BaseException:
            self.close(healthy=False)
            raise

    def _meet(self) -> None:
        everybody = [f"beat/{r}" for r in range(self.world)]
        try:
            self._await(everybody)
            self.pulse.start()
            self.gloo = mesh(self.store, "gloo", self.rank, self.world, self.interface, self.timeout)
        except RuntimeError as e:
            missing: list[int] = []
            with suppress(RuntimeError):
                missing = [r for r, key in enumerate(everybody) if not self.store.check([key])]
            raise Lost(f"rank {', '.join(map(str, missing)) or '?'} did not come within {self.timeout:g} s "
                       f"({line_of(e)})", missing) from e
        memory = Memory(self.device == "cpu" and self.world > 1)
        try:
            told = self.all([*Device.of(self.device), memory.address])
            self.devices = [Device(*device) for *device, _ in told]
            if one_each(self.devices):
                # The heartbeat decides; NCCL's own clock, which ends the process, comes later.
                self.nccl = nccl(self.store, self.rank, self.world, 10 * self.timeout + 2 * self.hang)
            self.host = Host(self, memory, [address for *_, address in told])
            self.barrier()   # who is lost later leaves nobody waiting for neighbours
        except BaseException:
            memory.close()
            raise

    def send(self, header: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> None:
        """Send a command and named tensors from rank 0 to all others.

        It is one broadcast, with small tensors in it; large ones go from host to host.

        Every rank must have answered the command before, by ``gather`` or ``all``: large tensors overwrite its own.
        """
        self.commands += 1
        shapes, flat = describe(vectors, self.check)
        said = bundle([dict(header), shapes, self.rate], [v for v in flat if v.numel() <= SMALL])
        if large := [v for v in flat if v.numel() > SMALL]:
            assert self.answered
            self.answered = False
            self.host.fill(large)
        while True:
            block = torch.zeros(self.room, dtype=torch.uint8)
            fits = said[:self.room]
            block[:fits.numel()] = fits
            self.broadcast(block, self.gloo)
            if fits.numel() == said.numel():
                break
            self.room = room_for(said.numel())
        self.host.send(large)

    def receive(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the next command of rank 0 and its tensors."""
        try:
            while True:
                block = torch.empty(self.room, dtype=torch.uint8)
                self.broadcast(block, self.gloo)
                if (size := length(block)) <= self.room:
                    break
                self.room = room_for(size)
            (header, shapes, self.rate), small = unbundle(block)
            self.commands += 1
            return header, restore(shapes, small, self.host.receive, self.check)
        except Altered as e:
            raise Lost(f"{str(e) or 'a command'} arrived altered at rank {self.rank}", own=True) from None

    def check(self, v: Tensor, turn: int | None = None) -> int:
        """Return the checksum of a large vector of the last command, or of that number: the same at every rank."""
        if self.world == 1:
            return 0
        return checksum(v, 1 if self.host.several else SOME, self.commands if turn is None else turn)

    def gather(self, said: Tensor, room: int) -> list[Tensor]:
        """Return at rank 0 what every rank said, from ``bundle``, in the order of the ranks; elsewhere nothing.

        What is longer than ``room`` bytes, which must be the same at every rank, arrives cut off: its
        ``length`` shows it.
        """
        block = torch.zeros(room, dtype=torch.uint8)
        fits = said[:room]
        block[:fits.numel()] = fits
        options = _forever(dist.GatherOptions(), rootRank=0)
        answers = [torch.empty_like(block) for _ in range(self.world)] if self.rank == 0 else []
        self.done(self._begun(self.gloo.gather([answers] if answers else [], [block], options)))
        self.answered = True
        return answers

    def all(self, status: Any) -> list[Any]:
        """Return what every rank gave, in the order of the ranks, at every rank."""
        said = bundle(status)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        options = _forever(AllgatherOptions())
        self.done(self._begun(self.gloo.allgather([sizes], [torch.tensor([said.numel()])], options)))
        most = max(int(size) for size in sizes)
        blocks = [torch.empty(most, dtype=torch.uint8) for _ in range(self.world)]
        padded = torch.zeros(most, dtype=torch.uint8)
        padded[:said.numel()] = said
        self.done(self._begun(self.gloo.allgather([blocks], [padded], options)))
        self.answered = True
        return [unbundle(block)[0] for block in blocks]

    def reduce(self, buffer: Tensor, wire: str = "float32") -> Tensor:
        """Return the sum of all ranks' buffers at rank 0; elsewhere the result is of no use.

        With ``wire`` "bf16" what crosses is rounded to bfloat16: every rank's own buffer plus what came to it.
        """
        options = _forever(dist.ReduceOptions(), rootRank=0)
        if self.nccl is not None and wire != "bf16":
            there = buffer.to(self.device)
            self.done(self._begun(self.nccl.reduce([there], options)))
            return there.to(buffer.device)
        here = buffer.cpu()   # gloo sends what lies in the host's memory
        if self.host.several or wire == "bf16":
            rate = self.host.line.sum(here, torch.bfloat16 if wire == "bf16" else here.dtype)
            if self.rank == 0:      # the others hear of it with the next command
                self.rate = rate or self.rate
        elif here.numel():     # within a host it takes fewer operations, and those are what costs
            self.done(self._begun(self.gloo.reduce([here], options)))
        return here

    def broadcast(self, t: Tensor, among: Any) -> None:
        """Send a tensor from the first rank of a group to the others of it."""
        self.done(self.begin(t, among))

    def begin(self, t: Tensor, among: Any, root: int = 0) -> Any:
        """Begin to send a tensor from one rank of a group to the others of it; ``done`` waits until it is there."""
        return self._begun(among.broadcast([t], _forever(dist.BroadcastOptions(), rootRank=root)))

    def connect(self, name: str, ranks: Sequence[int]) -> Any:
        """Return a group of some ranks, this one among them; Lost is raised if one of them does not come."""
        try:
            part = mesh(self.store, name, ranks.index(self.rank), len(ranks), self.interface, self.timeout)
        except RuntimeError as e:
            raise Lost(line_of(e)) from e
        self.parts.append(part)
        return part

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all(None)

    def close(self, healthy: bool = True, patience: float = SETTLED) -> None:
        """End the heartbeat and the connections.

        A lost group is taken down when its last operation has failed, as it does when a peer's connections close;
        that is waited for ``patience`` seconds. With an operation that still waits, for a frozen peer that is not
        ours to end, it cannot be destroyed: it is ``stuck``, and left to the end of the process.
        """
        self.pulse.close()
        self.stuck = not self._end(self.begun, patience)
        self.begun.clear()
        if self.stuck:
            for group in (self.gloo, *self.parts):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        if self.nccl is not None and not healthy:
            with suppress(RuntimeError):   # its communicators may never have come up
                self.nccl.abort()
        if self.host is not None:
            self.host.close()
        self.parts.clear()
        self.over = str
        self.gloo = self.nccl = self.store = self.ear.store = None

    @staticmethod
    def _end(works: Sequence[Any], patience: float) -> bool:
        """Return whether operations end, well or not, within so many seconds."""
        deadline = time.monotonic() + patience
        while not (ended := all(work.is_completed() for work in works)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return ended

    def look(self) -> None:
        """Check the heartbeats of the ranks that this one watches.

        Raises:
            Lost: naming the silent or hung ranks.
        """
        if why := self.over():
            raise Lost(why)
        if silent := self.ear.silent(self.timeout, self.interval):
            ranks = ", ".join(map(str, silent))
            raise Lost(f"rank {ranks} gave no sign of life for {self.timeout:g} s", silent)
        if hung := self.ear.hung(self.hang):
            stuck = " and ".join(f"rank {rank} took no step for {self.hang:g} s {where}".strip()
                                 for rank, where in hung.items())
            raise Lost(f"{stuck} (backend.hang)", list(hung))

    def _await(self, keys: list[str]) -> None:
        """Wait for the others' first beats."""
        deadline = time.monotonic() + self.timeout
        while True:
            left = deadline - time.monotonic()
            try:
                self.store.wait(keys, timedelta(seconds=max(0.001, min(left, self.interval))))
                return
            except RuntimeError:
                if left <= self.interval:
                    raise
                if why := self.over():
                    raise Lost(why) from None

    def _begun(self, work: Any) -> Any:
        self.begun.append(work)
        return work

    def done(self, work: Any) -> None:
        """Wait until an operation has ended; Lost is raised if a rank that it needs is gone, silent or hung."""
        while True:
            ended = work.is_completed()
            try:
                work.wait(timedelta(seconds=self.interval))
                self.begun.remove(work)
                return
            except RuntimeError as e:
                if ended:
                    raise Lost(line_of(e)) from e
                if work.is_completed():
                    continue    # whether well, or not, it says when asked again
                try:
                    self.look()
                except RuntimeError as gone:
                    if not self._end([work], SETTLED):     # rank 0 may have been done before this one was
                        raise Lost(f"the rendezvous store is gone ({line_of(gone)})") from gone


def _forever(options: Any, **more: Any) -> Any:
    for name, value in {"timeout": FOREVER, **more}.items():
        setattr(options, name, value)
    return options
