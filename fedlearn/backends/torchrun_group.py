"""A process group for rounds: commands and vectors out, status and sums in, nobody waits forever.

A peer that dies closes its connections and is noticed at once. A peer that is silent (frozen, or
cut off) is noticed because its heartbeat in the rendezvous store stops; a peer that is merely slow
keeps beating and is waited for.

The group is built on the c10d classes themselves, not on the process-wide default group, so that it
meets neither a group of the caller's own nor that of another run in the same process.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import AllgatherOptions

from .torchrun_bundle import SMALL, bundle, length, room_for, unbundle
from .torchrun_host import Host, Memory

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}
FOREVER = timedelta(days=30)  # of an operation once connected: the heartbeat decides
PIECE = 1 << 20      # entries that are rounded and gathered at a time


class Lost(Exception):
    """A peer died, or fell silent; ``silent`` are the ranks that did."""

    def __init__(self, what: str, silent: Sequence[int] = ()) -> None:
        super().__init__(what)
        self.silent = list(silent)


class Group:
    """``world`` ranks that met at ``store``; ``watch`` are the ranks whose heartbeat this one checks.

    ``interface`` is the network interface to use (empty: gloo's choice, or GLOO_SOCKET_IFNAME).
    ``device`` other than "cpu" adds NCCL for the sums.

    Raises:
        Lost: if a rank does not come within ``timeout`` seconds.
    """

    def __init__(self, store: Any, rank: int, world: int, timeout: float, interface: str = "",
                 watch: Sequence[int] = (), device: str = "cpu") -> None:
        self.store, self.rank, self.world, self.timeout, self.device = store, rank, world, timeout, device
        self.interface, self.interval = interface, min(1.0, timeout / 4)
        self.room = room_for(0)   # of a command, the same at every rank
        self.watch = list(watch)
        self.stop = Event()
        self.beater = Thread(target=self._beat, name="fedlearn-heartbeat", daemon=True)
        store.set(f"beat/{rank}", "0")
        everybody = [f"beat/{r}" for r in range(world)]
        try:
            store.wait(everybody, timedelta(seconds=timeout))
            self.beater.start()
            self.gloo: Any = self._connect("gloo", range(world))
        except RuntimeError as e:
            missing = [r for r, key in enumerate(everybody) if not _has(store, key)]
            raise Lost(f"rank {', '.join(map(str, missing)) or '?'} did not come within {timeout:g} s "
                       f"({_line(e)})", missing) from e
        self.seen: dict[int, tuple[bytes, float]] = {}
        self.looked = time.monotonic()
        self.nccl: Any = None
        self.answered = True   # whether nobody reads the last command's vectors any more
        self.parts: list[Any] = []   # the groups of some of the ranks
        memory = Memory(device == "cpu" and world > 1)
        told = self.all([device, memory.address])
        kinds = sorted({kind.split(":")[0] for kind, _ in told})
        if len(kinds) > 1:
            raise Lost(f"some ranks have {' and others '.join(kinds)}; set backend.device=cpu")
        if device != "cpu":
            wait: Any = dist.ProcessGroupNCCL.Options()
            wait._timeout = timedelta(seconds=timeout)
            self.nccl = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, world, wait)
        self.host = Host(self, memory, [address for _, address in told])

    def send(self, header: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> None:
        """Send a command and named tensors from rank 0 to all others.

        It is one broadcast, with small tensors in it, and to every other host one more for every large tensor.

        Every rank must have answered the command before, by ``gather`` or ``all``: large tensors overwrite its own.
        """
        shapes = [[name, str(v.dtype).removeprefix("torch."), list(v.shape)] for name, v in vectors.items()]
        flat = [v.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for v in vectors.values()]
        said = bundle([dict(header), shapes], [v for v in flat if v.numel() <= SMALL])
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
        while True:
            block = torch.empty(self.room, dtype=torch.uint8)
            self.broadcast(block, self.gloo)
            if (size := length(block)) <= self.room:
                break
            self.room = room_for(size)
        (header, shapes), small = unbundle(block)
        kinds = [DTYPES[kind] for _, kind, _ in shapes]
        sizes = [math.prod(shape) * kind.itemsize for kind, (*_, shape) in zip(kinds, shapes, strict=True)]
        large = iter(self.host.receive([size for size in sizes if size > SMALL]))
        vectors, start = {}, 0
        for (name, _, shape), kind, size in zip(shapes, kinds, sizes, strict=True):
            if size <= SMALL:
                part, start = small[start:start + size].clone(), start + size
            else:
                part = next(large)
            vectors[name] = part.view(kind).view(shape)
        return header, vectors

    def gather(self, said: Tensor, room: int) -> list[Tensor]:
        """Return at rank 0 what every rank said, from ``bundle``, in the order of the ranks; elsewhere nothing.

        What is longer than ``room`` bytes, which must be the same at every rank, arrives cut off: its
        ``length`` shows it.
        """
        block = torch.zeros(room, dtype=torch.uint8)
        fits = said[:room]
        block[:fits.numel()] = fits
        answers = self._gather(block)
        self.answered = True
        return answers

    def all(self, status: Any) -> list[Any]:
        """Return what every rank gave, in the order of the ranks, at every rank."""
        said = bundle(status)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        options = _forever(AllgatherOptions())
        self._done(self.gloo.allgather([sizes], [torch.tensor([said.numel()])], options))
        most = max(int(size) for size in sizes)
        blocks = [torch.empty(most, dtype=torch.uint8) for _ in range(self.world)]
        padded = torch.zeros(most, dtype=torch.uint8)
        padded[:said.numel()] = said
        self._done(self.gloo.allgather([blocks], [padded], options))
        self.answered = True
        return [unbundle(block)[0] for block in blocks]

    def reduce(self, buffer: Tensor, wire: str = "float32") -> Tensor:
        """Return the sum of all ranks' buffers at rank 0; elsewhere the result is of no use.

        With ``wire`` "bf16" rank 0 adds the others' buffers, rounded to bfloat16, to its own in the buffer's
        dtype. That is as quick as a reduction in bfloat16, which would round every rank's and every sum.
        """
        if wire == "bf16":
            for piece in buffer.split(PIECE):
                others = self._gather(piece.bfloat16().cpu())[1:]
                for other in others:
                    piece.add_(other.to(piece.device))
            return buffer
        options = _forever(dist.ReduceOptions())
        options.rootRank = 0
        if self.nccl is not None:
            there = buffer.to(self.device)
            self._done(self.nccl.reduce([there], options))
            return there.to(buffer.device)
        if buffer.numel():
            self._done(self.gloo.reduce([buffer], options))
        return buffer

    def broadcast(self, t: Tensor, among: Any) -> None:
        """Send a tensor from the first rank of a group to the others of it."""
        options = _forever(dist.BroadcastOptions())
        options.rootRank = 0
        self._done(among.broadcast([t], options))

    def connect(self, name: str, ranks: Sequence[int]) -> Any:
        """Return a group of some ranks, this one among them; Lost is raised if one of them does not come."""
        try:
            self.parts.append(self._connect(name, ranks))
        except RuntimeError as e:
            raise Lost(_line(e)) from e
        return self.parts[-1]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all(None)

    def close(self, healthy: bool = True) -> None:
        """End the heartbeat and the connections.

        An unhealthy group with a frozen peer is left to the end of the process: it cannot be
        destroyed while one of its operations still waits.
        """
        self.stop.set()
        if self.beater.is_alive():
            self.beater.join(self.interval + 5)
        if not healthy and self.gloo is not None:
            for group in (self.gloo, *self.parts):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        self.host.close()
        self.parts.clear()
        self.gloo = self.nccl = self.store = None

    def look(self) -> None:
        """Check the heartbeats of the ranks that this one watches.

        Raises:
            Lost: naming the silent ranks.
        """
        if silent := self.silent(self.timeout):
            ranks = ", ".join(map(str, silent))
            raise Lost(f"rank {ranks} gave no sign of life for {self.timeout:g} s", silent)

    def silent(self, longer: float) -> list[int]:
        """Return the watched ranks that have been silent for longer than so many seconds."""
        now = time.monotonic()
        if now - self.looked > 3 * self.interval:
            self.seen.clear()  # this process itself was suspended: the others may not have been
        self.looked = now
        for rank in self.watch:
            count = self.store.get(f"beat/{rank}")
            if rank not in self.seen or self.seen[rank][0] != count:
                self.seen[rank] = count, now
        return [rank for rank in self.watch if now - self.seen[rank][1] > longer]

    def _connect(self, name: str, ranks: Sequence[int]) -> Any:
        store = dist.PrefixStore(name, self.store)
        options = _options(self.interface, self.timeout)
        return dist.ProcessGroupGloo(store, ranks.index(self.rank), len(ranks), options)

    def _gather(self, t: Tensor) -> list[Tensor]:
        options = _forever(dist.GatherOptions())
        options.rootRank = 0
        into = [torch.empty_like(t) for _ in range(self.world)] if self.rank == 0 else []
        self._done(self.gloo.gather([into] if into else [], [t], options))
        return into

    def _done(self, work: Any) -> None:
        while True:
            try:
                work.wait(timedelta(seconds=self.interval))
                return
            except RuntimeError as e:
                if work.is_completed():
                    if work.is_success():
                        return
                    raise Lost(_line(e)) from e
            try:
                self.look()
            except RuntimeError as e:
                raise Lost(f"the rendezvous store is gone ({_line(e)})") from e

    def _beat(self) -> None:
        store, n = self.store, 0
        while not self.stop.wait(self.interval):
            n += 1
            try:
                store.set(f"beat/{self.rank}", str(n))
            except RuntimeError:
                return  # the store went with its host, which the next collective notices


def _options(interface: str, timeout: float) -> Any:
    kind: Any = dist.ProcessGroupGloo
    options = kind._Options()
    device = kind.create_device(interface=interface) if interface else kind.create_default_device()
    options._devices = [device]
    options._timeout = timedelta(seconds=timeout)
    options._threads = 2
    return options


def _forever(options: Any) -> Any:
    options.timeout = FOREVER
    return options


def _has(store: Any, key: str) -> bool:
    try:
        return bool(store.check([key]))
    except RuntimeError:
        return False


def _line(e: Exception) -> str:
    return str(e).strip().split("\n")[0]
