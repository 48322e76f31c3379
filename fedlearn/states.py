"""The persistent states of clients: versioned, so that only accepted replies count.

A state is known by (client, version), the version being the key of the work that made it. A worker
writes the new version beside the old one; the coordinator alone decides, by accepting the reply,
which version the client's next work starts from. A state that was written by work that died, came
too late or was refused is therefore never read, and work that runs again writes the same bytes.

Only clients that were ever sampled have a state, and what does not fit a budget of memory is on disk: one file for
each, the bytes of its tensors one after another.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from .contracts import Tree
from .errors import CheckpointError
from .vectors import tree_flat, tree_like

MEMORY = 2**30    # bytes of states that a worker keeps in memory


class States:
    """The client states that one worker reads and writes.

    With ``through`` every write goes to ``folder`` at once, for workers that share the folder and
    may each be asked for any client; without it states stay in memory until ``flush``, or until they
    take more than ``memory`` bytes: those of the clients seen longest ago then go to the folder, or,
    without one, to a temporary folder that lives as long as this object.
    """

    def __init__(self, template: Tree, folder: Path | None = None, through: bool = False,
                 memory: int = MEMORY) -> None:
        self.template, self.folder, self.through = template, folder, through and folder is not None
        self.memory = memory
        self.size = sum(t.numel() * t.element_size() for t in tree_flat(template).values())
        self.held: OrderedDict[int, dict[int, Tree]] = OrderedDict()
        self.count = 0          # of the states in ``held``: counted here, or every ``put`` would cost O(clients)
        self.written: set[tuple[int, int]] = set()
        self.spilled: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, client: int, version: int) -> Tree:
        """Return a client's state of a version.

        Raises:
            CheckpointError: if it is neither in memory nor in the folder.
        """
        versions = self.held.get(client, {})
        if version not in versions:
            return self._read(client, version)
        self.held.move_to_end(client)
        return versions[version]

    def settle(self, accepted: Mapping[int, int]) -> None:
        """Forget what came before these accepted versions, by client: nobody will ask for it.

        Called as soon as they are known, the memory is still in the cache when a new state takes its place.
        """
        for client, version in accepted.items():
            versions = self.held.get(client, {})
            for older in [v for v in versions if v < version]:
                del versions[older]
                self.count -= 1

    def put(self, client: int, version: int, state: Tree) -> None:
        """Keep a state of which no tensor is changed afterwards."""
        if self.through:
            self._write(client, version, state)
            return
        versions = self.held.setdefault(client, {})
        self.count += version not in versions
        versions[version] = state
        self.held.move_to_end(client)
        while self.size * self.count > self.memory and len(self.held) > 1:
            oldest, versions = self.held.popitem(last=False)
            self.count -= len(versions)
            for version, state in versions.items():
                self._write(oldest, version, state)

    def flush(self, states: Iterable[tuple[int, int]]) -> None:
        """Write these (client, version) states to the folder and forget all others that memory holds."""
        if self.through:
            return
        wanted = set(states)
        for client, versions in list(self.held.items()):
            for version in [v for v in versions if (client, v) not in wanted]:
                del versions[version]
            if not versions:
                del self.held[client]
            for version, state in versions.items():
                if self.folder is not None:
                    self._write(client, version, state)
        self.count = sum(map(len, self.held.values()))

    def prune(self, keep: Iterable[tuple[int, int]]) -> None:
        """Delete the files of all versions but these (client, version) pairs."""
        folder = self.folder or self.spilled
        if folder is None:
            return
        keep = set(keep)
        self.written &= keep
        names = {self._name(client, version) for client, version in keep}
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _name(self, client: int, version: int) -> str:
        return f"{client}.{version}.state"

    def _read(self, client: int, version: int) -> Tree:
        what = f"the state of client {client} as of work {version}"
        folder = self.folder or self.spilled
        if folder is None:
            raise CheckpointError(f"{what} is not in memory and the run has no folder to read it from")
        path = folder / self._name(client, version)
        try:
            data = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
        except OSError as e:
            raise CheckpointError(f"{what} cannot be read from {path} ({e.strerror}); start the run anew, or put the "
                                  "file back") from e
        if len(data) != self.size:
            raise CheckpointError(f"{what} cannot be read from {path} ({len(data)} of {self.size} bytes); start the "
                                  "run anew, or put the file back")
        read, start = {}, 0
        for name, like in tree_flat(self.template).items():
            stop = start + like.numel() * like.element_size()
            part = data[start:stop]
            # Bytes that do not begin at a multiple of the entries' size cannot be viewed as such.
            part = part if start % like.element_size() == 0 else part.clone()
            read[name] = part.view(like.dtype).view(like.shape).to(like.device)
            start = stop
        return tree_like(self.template, read)

    def _write(self, client: int, version: int, state: Tree) -> None:
        if (client, version) in self.written:
            return
        folder = self.folder or self.spilled
        if folder is None:
            folder = self.spilled = Path(tempfile.mkdtemp(prefix="fedlearn-states-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = folder / self._name(client, version)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            for t in tree_flat(state).values():
                file.write(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        part.replace(path)
        if not self.through:    # there nothing is written twice, and the set would only grow
            self.written.add((client, version))
