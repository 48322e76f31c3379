"""Large vectors once per host: its ranks read what rank 0 broadcasts in one place of its memory.

The place is a file in memory without a name in any folder (``memfd_create``): whoever is killed leaves nothing
behind, and the size of /dev/shm, 64 MB in most containers, does not limit it. The first rank of a host makes it,
the others open it through /proc. Who cannot (another system, another user, containers that call themselves the
same) counts as a host of its own, and is sent its own copy.

Nobody reads bytes of another round than its own. Not older ones: rank 0 fills its host's memory before it sends the
command that tells of it, and the first rank of another host, which receives the bytes after the command, tells the
others there when it has them all. Not newer ones: a rank answers a command when its work is done, and all that it does
later in a round is to add up partial sums; rank 0 has everybody's answer before it fills its memory again, and another
host's first rank fills its own only when the next command has come, later still.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from io import FileIO
from itertools import accumulate
from secrets import token_hex
from socket import gethostname
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import WorkerError
from .line import Line

if TYPE_CHECKING:
    from .group import Group

ALIGNED = 64   # bytes at a multiple of which every vector begins


class Memory:
    """A file in memory of this process; ``address`` says where others of its host find it, if they can.

    ``wanted`` is false where vectors go to another device anyway.
    """

    def __init__(self, wanted: bool) -> None:
        self.file: FileIO | None = None
        self.address: list[Any] | None = None
        if wanted and hasattr(os, "memfd_create"):
            name = f"fedlearn-{token_hex(16)}"
            self.file = FileIO(os.memfd_create(name), "r+")
            self.address = [gethostname(), f"/proc/{os.getpid()}/fd/{self.file.fileno()}", name]

    def find(self, addresses: Sequence[list[Any] | None], rank: int) -> int:
        """Take the file of the first rank of this host, and return that rank; it is ``rank`` where there is none."""
        for r, there in enumerate(addresses[:rank]):
            if there is not None and self.address is not None and there[0] == self.address[0]:
                _, path, name = there
                try:
                    # The number may be that of another process here: its name says whether it is the file.
                    if os.readlink(path).removeprefix("/memfd:").split(" ")[0] == name:
                        file = FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "r")
                        self.close()
                        self.file = file
                        return r
                except OSError:
                    continue
        return rank

    def write(self, vectors: Sequence[Tensor]) -> None:
        """Fill the file with vectors of bytes; it is not mapped here, so a coordinator's memory does not grow."""
        starts, size = places([v.numel() for v in vectors])
        self.grow(size)
        assert self.file is not None
        for v, start in zip(vectors, starts, strict=True):
            left = v.numpy().data
            while len(left):   # the system writes 2 GB at a time at most
                n = os.pwrite(self.file.fileno(), left, start)
                left, start = left[n:], start + n

    def grow(self, size: int) -> None:
        """Make room for so many bytes.

        Raises:
            WorkerError: if the host has no memory for them.
        """
        assert self.file is not None
        try:
            if os.fstat(self.file.fileno()).st_size < size:
                os.posix_fallocate(self.file.fileno(), 0, size)
        except OSError as e:
            raise WorkerError(f"host {gethostname()} has no {size / 2**20:.0f} MB of shared memory for a broadcast "
                              f"({e.strerror})") from e

    def parts(self, sizes: Sequence[int], write: bool = False) -> list[Tensor]:
        """Return the file's vectors of bytes, of these sizes, in place: nothing is copied.

        Without ``write`` they are mapped copy on write and anew each time, so that whatever a client might do to
        them stays with this rank, and ends with the round.
        """
        assert self.file is not None
        starts, size = places(sizes)
        held = mmap.mmap(self.file.fileno(), size, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_COPY)
        return [torch.frombuffer(held, dtype=torch.uint8, count=n, offset=start)
                for n, start in zip(sizes, starts, strict=True)]

    def close(self) -> None:
        """Let go of the file, which ends with the last process that holds it; what is mapped stays."""
        if self.file is not None:
            self.file.close()
            self.file = self.address = None


def places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where vectors of so many bytes begin, one behind the other, and how long all are."""
    *starts, size = accumulate((-(-n // ALIGNED) * ALIGNED for n in sizes), initial=0)
    return starts, size


def settle(found: Sequence[int]) -> list[int]:
    """Return the first rank of every rank's host: the one that it found, unless that reads another's file itself."""
    return [first if found[first] == first else rank for rank, first in enumerate(found)]


class Host:
    """The ranks that share this rank's memory, and the way of large vectors to them; all ranks make it together.

    ``first`` of them is the only one that large vectors are sent to.
    """

    def __init__(self, group: Group, memory: Memory, addresses: Sequence[list[Any] | None]) -> None:
        self.group, self.memory, rank = group, memory, group.rank
        firsts = settle(group.all(memory.find(addresses, rank)))
        here = [r for r, first in enumerate(firsts) if first == firsts[rank]]
        hosts = sorted(set(firsts))
        self.first, self.shared, self.several = here[0] == rank, len(here) > 1, len(hosts) > 1
        if not self.shared:
            memory.close()
        self.line: Any = Line(group, "line", sorted(range(group.world), key=lambda r: (firsts[r], r)), self.several)
        # With one host nothing is sent. The ranks of rank 0's host need no word: the command comes after the bytes.
        self.between = self.line if len(hosts) == group.world else \
            Line(group, "hosts", hosts) if self.first and self.several else None
        self.within = group.connect(f"host {here[0]}", here) if here[0] and self.shared else None

    def fill(self, vectors: Sequence[Tensor]) -> None:
        """Let the ranks of rank 0's own host have large vectors of bytes, before the command that tells of them."""
        if self.shared and vectors:
            self.memory.write(vectors)

    def send(self, vectors: Sequence[Tensor]) -> None:
        """Send large vectors of bytes from rank 0 to the first ranks of the other hosts, which fill theirs."""
        if self.between is not None:
            for v in vectors:
                self.between.send(v)

    def receive(self, sizes: Sequence[int]) -> list[Tensor]:
        """Return the large vectors of a command, of so many bytes each."""
        if not sizes:
            return []
        if not self.shared:
            own = [torch.empty(n, dtype=torch.uint8) for n in sizes]
            self.send(own)
            return own
        if self.first:
            self.memory.grow(places(sizes)[1])
            self.send(self.memory.parts(sizes, write=True))
        if self.within is not None:
            self.group.broadcast(torch.zeros(1, dtype=torch.uint8), self.within)   # they are all there
        return self.memory.parts(sizes)

    def close(self) -> None:
        """Let go of the memory and the connections."""
        self.memory.close()
        self.between = self.within = self.line = None
