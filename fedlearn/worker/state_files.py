"""Clients' states as bytes: a header with a checksum, then the bytes of the state's tensors one after another.

The header (64 bytes) names format, client, version and size. The checksum covers it, too, so that neither a flipped
bit nor a file under another name goes unnoticed. Of a large tensor the BLAKE2 checksum is not taken over the bytes but
over 1,021 sums of them: every 1,021st 64-bit word goes into the same sum, with wrap-around. Every change within 8,168
bytes changes a sum, and so does a page that was lost or moved; it takes 0.3 ms for 6.6 MB, a CRC-32 2.6 ms.

States are files of a folder, which the processes of a run share, or lie in one unnamed file, which nobody shares and
which is gone when its process is, however that ends.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex

import numpy as np
import torch

from ..contracts import Tree
from ..errors import CheckpointError, FedlearnError, ResourceError
from ..sealed import sync_folder
from ..vectors import tree_flat, tree_like

MAGIC, FORMAT = b"fl-state", 1
ABOUT = struct.Struct("<8sqqqq")  # magic, format, client, version, bytes of the tensors
CHECKSUM = 24                     # bytes
HEAD = ABOUT.size + CHECKSUM      # a multiple of 64: the tensors behind it stay aligned
WORDS = 1021                      # a prime: pages, of 512 words, that changed places do not fall into the same sums
CHECKED = 2**30                   # bytes of states of which the contents are checked before a run is resumed
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
AT_ONCE = 8                       # files that are synced at a time: a disk commits them together

State = tuple[int, int]  # (client, version)


def checksum(about: bytes, parts: Sequence[np.ndarray]) -> bytes:
    """Return the checksum of a header and of parts, uint8 [n] each."""
    digest = blake2b(about, digest_size=CHECKSUM)
    for part in parts:
        whole = len(part) // (8 * WORDS) * (8 * WORDS)
        if whole:
            digest.update(np.add.reduce(part[:whole].view("<i8").reshape(-1, WORDS), axis=0).data)
        digest.update(part[whole:].data)
    return digest.digest()


class Encoding:
    """How states like ``template`` become bytes and back."""

    def __init__(self, template: Tree) -> None:
        self.template = template
        self.sizes = [t.numel() * t.element_size() for t in tree_flat(template).values()]
        self.size = HEAD + sum(self.sizes)

    def encode(self, client: int, version: int, state: Tree) -> list[memoryview | bytes]:
        """Return the pieces of a state's bytes; those of its tensors are not copied."""
        parts = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                 for t in tree_flat(state).values()]
        about = ABOUT.pack(MAGIC, FORMAT, client, version, sum(map(len, parts)))
        return [about + checksum(about, parts), *(part.data for part in parts)]

    def fault(self, data: np.ndarray, client: int, version: int) -> str:
        """Return what is wrong with the bytes of this state, "" if nothing is."""
        head = data[:HEAD].tobytes()
        if not head.startswith(MAGIC[:len(head)]):
            return "it does not begin as a client's state does"
        if len(head) == HEAD:
            _, form, of, as_of, size = ABOUT.unpack(head[:ABOUT.size])
            if form != FORMAT:
                return f"it has format {form}; this fedlearn reads {FORMAT}"
            if (of, as_of) != (client, version):
                return f"it says that it is the state of client {of} as of work {as_of}"
            if size != self.size - HEAD:
                return f"it says that it holds {size} bytes, not {self.size - HEAD}"
        if len(data) != self.size:
            return f"{len(data)} of {self.size} bytes"
        if checksum(head[:ABOUT.size], self._parts(data)) != head[ABOUT.size:]:
            return "it was altered: its checksum is not the one that it was written with"
        return ""

    def decode(self, data: np.ndarray) -> Tree:
        """Return the state whose bytes these are, on the template's devices."""
        read = {}
        for (name, like), part in zip(tree_flat(self.template).items(), self._parts(data), strict=True):
            t = torch.from_numpy(part)
            # Bytes that do not begin at a multiple of the entries' size cannot be viewed as such.
            t = t if t.data_ptr() % like.element_size() == 0 else t.clone()
            read[name] = t.view(like.dtype).view(like.shape).to(like.device)
        return tree_like(self.template, read)

    def _parts(self, data: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum([HEAD, *self.sizes])
        return [data[start:stop] for start, stop in zip(ends[:-1], ends[1:], strict=True)]


class StateFiles:
    """The states of a run in its folder, a file each; complete or not there at all."""

    def __init__(self, folder: Path, template: Tree = ()) -> None:
        self.folder, self.encoding = folder, Encoding(template)
        self.writer = token_hex(6)     # several hosts may share the folder: a process's number says little
        self.synced: set[State] = set()

    def path(self, client: int, version: int) -> Path:
        """Return where a state is."""
        return self.folder / f"{client}.{version}.state"

    def write(self, client: int, version: int, state: Tree) -> None:
        """Write a state, without waiting for the disk: ``sync`` does that.

        Raises:
            ResourceError: if the disk is full; nothing is left of the state then.
            CheckpointError: if it cannot be written for another reason.
        """
        path = self.path(client, version)
        part = path.with_name(f"{path.name}.{self.writer}.part")
        try:
            with part.open("wb", buffering=0) as file:
                _write(file.fileno(), self.encoding.encode(client, version, state))
            try:
                part.replace(path)
            except FileNotFoundError:
                if not self.folder.is_dir():
                    raise
                # Swept, because what it belongs to is no longer waited for.
        except OSError as e:
            part.unlink(missing_ok=True)
            raise refused(e, f"{_of(client, version)} cannot be written to {path}", "make room, then resume",
                          "see to it, then resume") from e
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def read(self, client: int, version: int) -> Tree:
        """Return a state.

        Raises:
            CheckpointError: if it is missing or damaged, naming the client, the version and the file.
        """
        return self.encoding.decode(self._checked(client, version))

    def check(self, states: Sequence[State]) -> None:
        """See that these states are there in their full length, and undamaged where they are not too many to read.

        The contents of more than ``CHECKED`` bytes are not read here: of a large population a run seldom needs many,
        and each is checked when it is read.

        Raises:
            CheckpointError: naming the first that is not.
        """
        if len(states) * self.encoding.size <= CHECKED:
            for client, version in states:
                self._checked(client, version)
            return
        for client, version in states:
            path = self.path(client, version)
            try:
                size = path.stat().st_size
            except OSError as e:
                raise _unreadable(client, version, path, str(e.strerror)) from e
            if size != self.encoding.size:
                raise _unreadable(client, version, path, f"{size} of {self.encoding.size} bytes")

    def sync(self, states: Iterable[State]) -> None:
        """Have these states on the disk, whoever wrote them; those that were synced before are not looked at again.

        Raises:
            CheckpointError: if one is not there or cannot be synced.
            ResourceError: if the disk is full.
        """
        states = set(states)
        new = sorted(states - self.synced)
        if new:
            with ThreadPoolExecutor(min(AT_ONCE, len(new))) as pool:
                list(pool.map(self._sync, new))
            sync_folder(self.folder)
        self.synced = states

    def prune(self, keep: Iterable[State]) -> None:
        """Delete all but these states, and what killed writers left; for the coordinator, between two rounds."""
        names = {self.path(client, version).name for client, version in keep}
        for entry in os.scandir(self.folder):
            if entry.name not in names and not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)

    def _checked(self, client: int, version: int) -> np.ndarray:
        path = self.path(client, version)
        try:
            if not path.is_file():      # to open something else might wait for ever
                raise FileNotFoundError(errno.ENOENT, "No such file")
            # One byte more than there should be tells whether there are more, however many.
            data = np.fromfile(path, dtype=np.uint8, count=self.encoding.size + 1)
        except OSError as e:
            raise _unreadable(client, version, path, str(e.strerror)) from e
        if fault := self.encoding.fault(data, client, version):
            raise _unreadable(client, version, path, fault)
        return data

    def _sync(self, state: State) -> None:
        path = self.path(*state)
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as e:
            raise refused(e, f"{_of(*state)} cannot be brought to disk as {path}", "make room, then resume",
                          "resume goes on from the checkpoint before") from e


class Spill:
    """States that one process keeps for itself, in places of one size in an unnamed temporary file."""

    def __init__(self, template: Tree) -> None:
        self.encoding = Encoding(template)
        self.places: dict[State, int] = {}
        self.free: list[int] = []
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (it is open as long as this object)
        self.close = weakref.finalize(self, self.file.close)

    def write(self, client: int, version: int, state: Tree) -> None:
        """Write a state; raises as ``StateFiles.write`` does."""
        known = self.places.get((client, version))
        place = known if known is not None else self.free[-1] if self.free else len(self.places)
        try:
            self.file.seek(place * self.encoding.size)
            _write(self.file.fileno(), self.encoding.encode(client, version, state))
        except OSError as e:
            raise refused(e, f"{_of(client, version)} cannot be written to the temporary folder "
                             f"{tempfile.gettempdir()}", "make room there, name another one in TMPDIR, or raise "
                             "state_memory", "name another one in TMPDIR, or raise state_memory") from e
        if known is None and self.free:
            self.free.pop()
        self.places[client, version] = place

    def read(self, client: int, version: int) -> Tree:
        """Return a state.

        Raises:
            CheckpointError: if it is not there, or damaged.
        """
        where = f"the temporary folder {tempfile.gettempdir()}"
        if (client, version) not in self.places:
            raise _unreadable(client, version, where, "it is not there")
        data = np.empty(self.encoding.size, dtype=np.uint8)
        start = self.places[client, version] * self.encoding.size
        got = 0
        while (n := os.preadv(self.file.fileno(), [data[got:]], start + got)) > 0:  # type: ignore[list-item]
            got += n
        if fault := self.encoding.fault(data[:got], client, version):
            raise _unreadable(client, version, where, fault)
        return self.encoding.decode(data)

    def prune(self, keep: Iterable[State]) -> None:
        """Give the places of all but these states away."""
        for state in self.places.keys() - set(keep):
            self.free.append(self.places.pop(state))


def refused(error: OSError, what: str, room: str, otherwise: str) -> FedlearnError:
    """Return the error for what the system refused to write, saying what to do where room is missing, and else."""
    kind, hint = (ResourceError, room) if error.errno in FULL else (CheckpointError, otherwise)
    return kind(f"{what}: {error.strerror or error}; {hint}")


def _write(fd: int, pieces: Iterable[memoryview | bytes]) -> None:
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest):
            rest = rest[os.write(fd, rest):]


def _of(client: int, version: int) -> str:
    return f"the state of client {client} as of work {version}"


def _unreadable(client: int, version: int, where: Path | str, what: str) -> CheckpointError:
    then = ("put the file back, or remove it and resume, which goes on from the newest checkpoint that does not need "
            "it; where all need it, start the run anew" if isinstance(where, Path) else "start the run anew")
    return CheckpointError(f"{_of(client, version)} cannot be read from {where} ({what}); {then}")
