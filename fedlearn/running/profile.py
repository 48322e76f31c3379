"""Where the time of a run's rounds went: wall time by phase, measured where the phases are called.

While a profile watches, the functions that begin a phase are replaced by ones that read the clock. A phase
inside another stops the outer one's clock, so that the shares add up to the whole. What runs in another thread
meanwhile, evaluation aside, is counted apart. Reading the clock takes about a microsecond a call, which is seen in
rounds of many tiny steps; results do not change.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import get_ident
from time import perf_counter
from typing import Any

from ..checkpoint import Checkpoints
from ..experiment import Experiment, Loop
from ..tracking import Tracker
from ..tracking.run_folder import RunFolder
from ..work import SUMS, Workers
from ..worker.worker import Worker
from . import evaluation

# In the order of a round. The last two are what is left of the workers' and of the coordinator's time.
PHASES = ("sampling", "broadcast", "batches", "oracle", "local algorithm", "pipeline", "reduce", "update", "digest",
          "evaluate", "checkpoint", "tracking", "workers", "rest")


class Profile:
    """Seconds and calls by phase, and of evaluation aside; ``scope`` says which processes they cover."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.calls = dict.fromkeys(PHASES, 0)
        self.aside, self.calls_aside = 0.0, 0
        self.scope = ""
        self.thread = get_ident()
        self.stack: list[str] = []
        self.since = 0.0

    @contextmanager
    def watch(self, e: Experiment, loop: Loop, workers: Workers, trackers: Sequence[Tracker]) -> Iterator[None]:
        """Measure what runs in this process meanwhile."""
        self.thread = get_ident()
        here = getattr(workers, "worker", None)
        where = e.backend.describe()
        self.scope = "all of the run's work" if where == "one process" else (
            f"the coordinator's process only, of {where}: under 'workers' it waits for the others")
        replaced: list[tuple[Any, str, Any]] = []
        for owner, names, phase in _places(e, loop, workers, trackers, here):
            for name in names:
                if not any(o is owner and n == name for o, n, _ in replaced) and callable(getattr(owner, name, None)):
                    replaced.append((owner, name, vars(owner).get(name)))
                    setattr(owner, name, self._timed(phase, getattr(owner, name)))
        self._begin("rest")
        try:
            yield
        finally:
            self._end()
            for owner, name, own in replaced:
                if own is None:     # inherited
                    delattr(owner, name)
                else:
                    setattr(owner, name, own)

    def table(self) -> str:
        """Return the phases with their seconds, shares and calls, the longest first."""
        total = sum(self.seconds.values()) or 1.0
        rows = [f"{phase:<16} {s:>10.3f} {s / total:>7.1%} {self.calls[phase]:>9}"
                for phase, s in sorted(self.seconds.items(), key=lambda item: -item[1]) if self.calls[phase]]
        head = f"{'phase':<16} {'seconds':>10} {'share':>7} {'calls':>9}"
        if self.calls_aside:
            rows.append(f"{'evaluate, aside':<16} {self.aside:>10.3f} {'-':>7} {self.calls_aside:>9}")
        return "\n".join([f"profile of {self.scope}", head, *rows])

    def write(self, path: Path) -> None:
        """Write all this as JSON."""
        total = sum(self.seconds.values()) or 1.0
        phases = {phase: {"seconds": s, "share": s / total, "calls": self.calls[phase]}
                  for phase, s in self.seconds.items()}
        written = {"scope": self.scope, "seconds": total, "phases": phases,
                   "evaluate_aside": {"seconds": self.aside, "calls": self.calls_aside}}
        path.write_text(json.dumps(written, indent=2) + "\n")

    def _timed(self, phase: str, call: Callable) -> Callable:
        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if get_ident() != self.thread:
                began = perf_counter()
                try:
                    return call(*args, **kwargs)
                finally:
                    self.aside, self.calls_aside = self.aside + perf_counter() - began, self.calls_aside + 1
            self._begin(phase)
            try:
                return call(*args, **kwargs)
            finally:
                self._end()
        return timed

    def _begin(self, phase: str) -> None:
        now = perf_counter()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.since
        self.stack.append(phase)
        self.calls[phase] += 1
        self.since = now

    def _end(self) -> None:
        now = perf_counter()
        self.seconds[self.stack.pop()] += now - self.since
        self.since = now


def _places(e: Experiment, loop: Loop, workers: Workers, trackers: Sequence[Tracker], worker: Worker | None
            ) -> Iterator[tuple[Any, Sequence[str], str]]:
    """Yield (class or module, names of functions, phase)."""
    algorithm = type(e.algorithm)
    yield type(e.sampling), ["cohort"], "sampling"
    yield type(e.weighting), ["weights"], "sampling"
    yield algorithm, ["broadcast"], "broadcast"
    yield algorithm, ["local_init", "local_step", "local_finish", "outgoing", "mix"], "local algorithm"
    yield algorithm, ["server_update"], "update"
    yield Worker, ["_draws"], "batches"
    if worker is not None:
        yield type(worker.oracle), ["expect", "enter", "at"], "batches"
        yield type(worker.oracle), ["grad", "value", "hvp", "full_grad", "full_value"], "oracle"
    for stage in e.pipeline.values():
        yield type(stage), ["encode", "decode"], "pipeline"
    yield SUMS[e.reduce], ["add_stack", "carry", "mean"], "reduce"
    yield sys.modules[type(loop).__module__], ["digest"], "digest"
    yield evaluation, ["measure"], "evaluate"
    yield evaluation.Evaluation, ["wait"], "evaluate"
    yield type(loop), ["snapshot"], "checkpoint"
    yield Checkpoints, ["save", "rounds", "meta"], "checkpoint"
    yield type(workers), ["commit"], "checkpoint"
    yield type(workers), ["map_reduce", "submit", "next", "exchange"], "workers"
    yield RunFolder, ["append_metrics", "append_ledger"], "tracking"
    for tracker in trackers:
        yield type(tracker), ["round"], "tracking"
