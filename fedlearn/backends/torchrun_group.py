"""A process group for rounds: commands and vectors out, status and sums in, nobody waits forever.

A peer that dies closes its connections and is noticed at once. A peer that is silent (frozen, or
cut off) is noticed because its heartbeat in the rendezvous store stops; a peer that is merely slow
keeps beating and is waited for.

The group is built on the c10d classes themselves, not on the process-wide default group, so that it
meets neither a group of the caller's own nor that of another run in the same process.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import AllgatherOptions

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}
FOREVER = timedelta(days=30)  # of an operation once connected: the heartbeat decides


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
        self.interval = min(1.0, timeout / 4)
        self.watch = list(watch)
        self.stop = Event()
        self.beater = Thread(target=self._beat, name="fedlearn-heartbeat", daemon=True)
        store.set(f"beat/{rank}", "0")
        everybody = [f"beat/{r}" for r in range(world)]
        try:
            store.wait(everybody, timedelta(seconds=timeout))
            self.beater.start()
            gloo = dist.PrefixStore("gloo", store)
            self.gloo: Any = dist.ProcessGroupGloo(gloo, rank, world, _options(interface, timeout))
        except RuntimeError as e:
            missing = [r for r, key in enumerate(everybody) if not _has(store, key)]
            raise Lost(f"rank {', '.join(map(str, missing)) or '?'} did not come within {timeout:g} s "
                       f"({_line(e)})", missing) from e
        self.seen: dict[int, tuple[bytes, float]] = {}
        self.looked = time.monotonic()
        self.nccl: Any = None
        kinds = sorted({kind.split(":")[0] for kind in self.all(device)})
        if len(kinds) > 1:
            raise Lost(f"some ranks have {' and others '.join(kinds)}; set backend.device=cpu")
        if device != "cpu":
            wait: Any = dist.ProcessGroupNCCL.Options()
            wait._timeout = timedelta(seconds=timeout)
            self.nccl = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, world, wait)

    def send(self, header: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> None:
        """Send a command and named tensors from rank 0 to all others."""
        shapes = [[name, str(v.dtype).removeprefix("torch."), list(v.shape)] for name, v in vectors.items()]
        text = _bytes(json.dumps([dict(header), shapes]))
        self._broadcast(torch.tensor([text.numel()]))
        self._broadcast(text)
        for v in vectors.values():
            self._broadcast(v.detach().cpu().contiguous().reshape(-1).view(torch.uint8))

    def receive(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the next command of rank 0 and its tensors."""
        size = torch.zeros(1, dtype=torch.int64)
        self._broadcast(size)
        text = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(text)
        header, shapes = json.loads(text.numpy().tobytes())
        vectors = {}
        for name, dtype, shape in shapes:
            vectors[name] = torch.empty(shape, dtype=DTYPES[dtype])
            self._broadcast(vectors[name].reshape(-1).view(torch.uint8))
        return header, vectors

    def all(self, status: Any) -> list[Any]:
        """Return what every rank gave, in the order of the ranks, at every rank."""
        text = _bytes(json.dumps(status))
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        options = _forever(AllgatherOptions())
        self._done(self.gloo.allgather([sizes], [torch.tensor([text.numel()])], options))
        most = max(int(size) for size in sizes)
        texts = [torch.empty(most, dtype=torch.uint8) for _ in range(self.world)]
        padded = torch.zeros(most, dtype=torch.uint8)
        padded[:text.numel()] = text
        self._done(self.gloo.allgather([texts], [padded], options))
        return [json.loads(t[:int(n)].numpy().tobytes()) for t, n in zip(texts, sizes, strict=True)]

    def reduce(self, buffer: Tensor) -> Tensor:
        """Return the sum of all ranks' buffers at rank 0; elsewhere the result is of no use."""
        options = _forever(dist.ReduceOptions())
        options.rootRank = 0
        if self.nccl is not None:
            there = buffer.to(self.device)
            self._done(self.nccl.reduce([there], options))
            return there.to(buffer.device)
        if buffer.numel():
            self._done(self.gloo.reduce([buffer], options))
        return buffer

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
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.gloo))
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

    def _broadcast(self, t: Tensor) -> None:
        if t.numel():
            options = _forever(dist.BroadcastOptions())
            options.rootRank = 0
            self._done(self.gloo.broadcast([t], options))

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


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _line(e: Exception) -> str:
    return str(e).strip().split("\n")[0]
