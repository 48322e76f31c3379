"""A look at the coordinator's own work, which nobody else can end: if it hangs, the process says where, and ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from threading import Event, Thread

from ...errors import WorkerError
from .pulse import Toil

OFTEN = 5.0   # seconds at least between looks, unless the time to wait for is short


class Watchdog:
    """Ends this process when its work took no step for ``hang`` seconds; ``end`` is called before."""

    def __init__(self, toil: Toil, hang: float, end: Callable[[], None]) -> None:
        self.toil, self.hang, self.end = toil, hang, end
        self.every = min(OFTEN, hang / 8)
        self.stop = Event()
        Thread(target=self._watch, name="fedlearn-watchdog", daemon=True).start()

    def _watch(self) -> None:
        while not self.stop.wait(self.every):
            if self.toil.tick(self.every) >= self.hang:
                shown = "\x1b[?25h\n" if sys.stderr.isatty() else ""   # a bar may have hidden the cursor
                print(f"{shown}error: the coordinator's own work took no step for {self.hang:g} s "
                      f"{self.toil.where()} in round {self.toil.round} (backend.hang); look at that client's data and "
                      "the model, raise backend.hang if steps may take so long, and continue the run with "
                      "`fedlearn resume`", file=sys.stderr, flush=True)
                try:
                    self.end()
                finally:
                    os._exit(WorkerError.code)
