"""A contestant's half of the line protocol; it needs nothing but the standard library.

The harness writes one line for every round that it wants; the contestant runs it and answers with one
JSON line. Between rounds it waits, so that the rounds of all contestants can be interleaved::

    contestant: {"event": "ready", "versions": {...}}
    harness:    go
    contestant: {"event": "round", "seconds": 0.031}
    harness:    go                                      (... and once more after the last round)
    contestant: {"event": "final", "accuracy": 0.81}    (its final model is in the file that was named)

With ``whole`` nobody waits: the process is timed from its start to its end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any


class Pace:
    """Runs a contestant at the harness's pace.

    ``together`` is called before the clock starts, where several processes must start together;
    only the one with ``leader`` talks to the harness.
    """

    def __init__(self, whole: bool = False, leader: bool = True, together: Callable[[], Any] | None = None) -> None:
        self.whole, self.leader, self.together = whole, leader, together
        # What frameworks print goes to stderr; only the protocol may reach the harness.
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.began = 0.0

    def ready(self, *packages: str) -> None:
        """Say that the first round can start, with the versions of the packages that count."""
        self._say({"event": "ready", "versions": {name: _version(name) for name in packages}})
        self._wait()

    def lap(self, excluded: float = 0.0) -> None:
        """Report a round, less ``excluded`` seconds of what is not part of it, and wait for the next."""
        self._say({"event": "round", "seconds": perf_counter() - self.began - excluded})
        self._wait()

    def final(self, accuracy: float) -> None:
        """Report the accuracy of the final model."""
        self.whole = False
        self._say({"event": "final", "accuracy": accuracy})

    def _say(self, message: dict[str, Any]) -> None:
        if self.leader and not self.whole:
            print(json.dumps(message), file=self.out, flush=True)

    def _wait(self) -> None:
        if self.whole:
            return
        if self.leader and sys.stdin.readline().strip() != "go":
            os._exit(3)  # the harness is gone
        if self.together:
            self.together()
        self.began = perf_counter()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
