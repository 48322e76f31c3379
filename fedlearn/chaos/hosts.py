"""A trial over several hosts: one rank on each of them, and the link of one is cut when its fault fires."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from subprocess import DEVNULL

from ..faults import Fault
from .network import INTERFACE, Network, network
from .trial import Launch

PORT = 29500


@contextmanager
def across(hosts: int, fault: Fault, down: float, mbit: float | None = None) -> Iterator[Launch]:
    """Give what runs a command as one rank on each of so many hosts; its exit code is rank 0's.

    When the mark of the fault is there, the link of host ``round % hosts`` goes down, for ``down`` seconds or until
    every rank has ended. The network, and its links, stay the same from one command to the next.
    """
    ports = count(PORT)
    with network(hosts, mbit) as net:
        cut = Cut(net, fault.round % hosts, down)

        def launch(arguments: Sequence[str], environ: Mapping[str, str], log: Path, patience: float) -> int | None:
            place = {"WORLD_SIZE": str(hosts), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0",
                     "MASTER_ADDR": net.address(0), "MASTER_PORT": str(next(ports)), "GLOO_SOCKET_IFNAME": INTERFACE}
            deadline = time.monotonic() + patience
            with ExitStack() as stack:
                stack.callback(cut.restore)
                ranks = []
                for rank in range(hosts):
                    said = stack.enter_context((log if rank == 0 else log.with_suffix(f".rank-{rank}")).open("wb"))
                    ranks.append(net.start(rank, [sys.executable, "-m", "fedlearn", *arguments],
                                           {**environ, **place, "RANK": str(rank)}, stdout=said, stderr=said,
                                           stdin=DEVNULL, start_new_session=True))
                    stack.callback(ranks[-1].wait)
                    stack.callback(ranks[-1].kill)
                while any(rank.poll() is None for rank in ranks):
                    if time.monotonic() > deadline:
                        return None
                    cut.look(log.parent / "faults" / "fault-0")
                    time.sleep(0.02)
            return ranks[0].returncode

        yield launch


class Cut:
    """A link that is cut once, for so many seconds, when a mark appears."""

    def __init__(self, net: Network, host: int, down: float) -> None:
        self.net, self.host, self.down = net, host, down
        self.since: float | None = None
        self.over = False

    def look(self, mark: Path) -> None:
        """Cut, or restore, what is due."""
        if self.since is None and mark.exists():
            self.net.cut(self.host)
            self.since = time.monotonic()
        elif self.since is not None and time.monotonic() - self.since > self.down:
            self.restore()

    def restore(self) -> None:
        """Let the link come up, if it is down."""
        if self.since is not None and not self.over:
            self.over = True
            self.net.restore(self.host)
