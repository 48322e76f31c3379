"""The persistent states of clients: versioned, so that only accepted replies count.

A state is known by (client, version), the version being the key of the work that made it. A worker
writes the new version beside the old one; the coordinator alone decides, by accepting the reply,
which version the client's next work starts from. A state that was written by work that died, came
too late or was refused is therefore never read, and work that runs again writes the same bytes.

Only clients that were ever sampled have a state, and what does not fit a budget of memory is on disk: in the run's
folder, or, without one, in a file without a name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..contracts import Tree
from ..errors import CheckpointError
from ..vectors import tree_flat
from .state_files import Spill, StateFiles

MEMORY = 2**30    # bytes of states that a worker keeps in memory


class States:
    """The client states that one worker reads and writes.

    With ``through`` every write goes to ``folder`` at once, for workers that share the folder and
    may each be asked for any client; without it states stay in memory until ``flush``, or until they
    take more than ``memory`` bytes: those of the clients seen longest ago then go to the folder, or,
    without one, to a file that lives as long as this object.
    """

    def __init__(self, template: Tree, folder: Path | None = None, through: bool = False,
                 memory: int = MEMORY) -> None:
        self.template, self.folder, self.through = template, folder, through and folder is not None
        self.memory = memory
        self.size = sum(t.numel() * t.element_size() for t in tree_flat(template).values())
        self.held: OrderedDict[int, dict[int, Tree]] = OrderedDict()
        self.count = 0          # of the states in ``held``: counted here, or every ``put`` would cost O(clients)
        self.written: set[tuple[int, int]] = set()
        self.files: StateFiles | Spill | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.files = StateFiles(folder, template)

    def get(self, client: int, version: int) -> Tree:
        """Return a client's state of a version.

        Raises:
            CheckpointError: if it is neither in memory nor on disk, or damaged there.
        """
        versions = self.held.get(client, {})
        if version not in versions:
            if self.files is None:
                raise CheckpointError(f"the state of client {client} as of work {version} is not in memory and the "
                                      "run has no folder to read it from; start the run anew")
            return self.files.read(client, version)
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
        """Keep a state of which no tensor is changed afterwards.

        Raises:
            ResourceError: if it goes to disk, and that is full.
            CheckpointError: if it cannot be written for another reason.
        """
        if self.through:
            self._write(client, version, state)
            return
        versions = self.held.setdefault(client, {})
        self.count += version not in versions
        versions[version] = state
        self.held.move_to_end(client)
        while self.size * self.count > self.memory and len(self.held) > 1:
            oldest, versions = next(iter(self.held.items()))
            for version, state in versions.items():
                self._write(oldest, version, state)
            del self.held[oldest]
            self.count -= len(versions)

    def flush(self, states: Iterable[tuple[int, int]]) -> None:
        """Write these (client, version) states to the folder and forget all others that memory holds.

        Raises:
            ResourceError, CheckpointError: as ``put`` does; nothing is forgotten that was to be written.
        """
        if self.through:
            return
        wanted = set(states)
        for client, versions in list(self.held.items()):
            for version in [v for v in versions if (client, v) not in wanted]:
                del versions[version]
                self.count -= 1
            if not versions:
                del self.held[client]
            for version, state in versions.items():
                if self.folder is not None:
                    self._write(client, version, state)

    def prune(self, keep: Iterable[tuple[int, int]]) -> None:
        """Delete from the disk all versions but these (client, version) pairs."""
        keep = set(keep)
        self.written &= keep
        if self.files is not None:
            self.files.prune(keep)

    def _write(self, client: int, version: int, state: Tree) -> None:
        if (client, version) in self.written:
            return
        if self.files is None:
            self.files = Spill(self.template)
        self.files.write(client, version, state)
        if not self.through:    # there nothing is written twice, and the set would only grow
            self.written.add((client, version))
