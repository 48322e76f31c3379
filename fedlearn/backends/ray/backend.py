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
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...errors import in_range
from ...work import Setup
from ..device import words
from .gpus import check_kinds
from .workers import RayWorkers, api


@dataclass(frozen=True)
class RayActors:
    """Run clients on ``workers`` Ray actors of ``threads`` threads each.

    A cluster is joined where ``address``, or else RAY_ADDRESS, names one, or the process is connected
    to one already, and is then left running; otherwise one is started on this machine, which strangers cannot use.
    ``token`` is the path of a file with the token that a cluster to be joined asks for; null takes what Ray finds in
    its own environment variables. ``chunk`` clients are handed out at a time; 0 chooses: many at first, one at a time
    at the end. An actor that gives no sign of life for ``timeout`` seconds is taken for dead, and so is one whose work
    takes no local step for ``hang`` seconds (0 or None: it may); ``replacements`` may be made in a round.
    ``devices`` is "cpu", "cuda" (a GPU of its own for every actor), a list with one of these for each actor, or "auto":
    GPUs for as many actors as there are, if the task can go there. Where machines have data of their own, every machine
    gets an actor before one gets a second.
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
    devices: Any = "auto"

    verbs: ClassVar[frozenset[str]] = frozenset({"map_reduce"})

    def __post_init__(self) -> None:
        in_range("backend.workers", self.workers, least=1)
        in_range("backend.threads", self.threads, least=1)
        in_range("backend.chunk", self.chunk, least=0)
        in_range("backend.timeout", self.timeout, above=0)
        in_range("backend.replacements", self.replacements, least=0)
        check_kinds(self.devices, self.workers)
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
        api()
        return RayWorkers(self, replace(setup, threads=self.threads))

    def describe(self) -> str:
        """Say what runs where."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        where = f"the cluster at {address}" if address else "this machine"
        plural = "s" * (self.workers > 1), "s" * (self.threads > 1)
        asked = self.devices if isinstance(self.devices, str) else words(self.devices)
        on = "" if asked == "auto" else f", on {asked}"
        return f"{self.workers} Ray actor{plural[0]} on {where}, {self.threads} thread{plural[1]} each{on}"
