"""The harness's half: contestants are processes, and their rounds take turns in one run.

For round i each contestant in turn runs it while the others wait, so that whatever happens to the
machine happens to all of them. Before each turn the machine must be idle; where it does not become so
the measurement is marked.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import Patience, descendants, memory_mb

ROOT = Path(__file__).parents[2]
Log = Callable[[dict[str, Any]], None]
NOISY = 0.3  # busy cores before a turn


class Failed(Exception):
    """A contestant could not be run; the message says why."""


@dataclass(frozen=True)
class Contestant:
    """A process to be timed.

    ``command`` may hold {folder} and {model}, the prepared case and the file for the final weights.
    ``missing`` says why it cannot run on this machine, if so. ``freeze`` stops the process while
    others have their turn, for those that are busy while they wait. ``same`` says whether its final
    model should be bare PyTorch's.
    """

    name: str
    command: Sequence[str]
    missing: str = ""
    freeze: bool = False
    same: bool = True
    folder: Path | None = None  # instead of the workload's
    env: dict[str, str] = field(default_factory=dict)

    def filled(self, folder: Path, model: Path) -> list[str]:
        """Return the command for a case."""
        return [part.replace("{folder}", str(self.folder or folder)).replace("{model}", str(model))
                for part in self.command]


class Racer:
    """A running contestant."""

    def __init__(self, contestant: Contestant, folder: Path, scratch: Path) -> None:
        self.contestant = contestant
        stem = "".join(c if c.isalnum() else "-" for c in contestant.name)
        self.model, self.log = scratch / f"{stem}.npy", scratch / f"{stem}.log"
        self.memory = (0.0, 0.0)
        self.line = b""
        self.began = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(contestant.filled(folder, self.model), stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=log, cwd=ROOT, start_new_session=True,
                                            env=environment(contestant))

    def go(self, timeout: float) -> dict[str, Any]:
        """Let it run once and return its answer."""
        assert self.process.stdin
        with self.awake():
            try:
                self.process.stdin.write(b"go\n")
                self.process.stdin.flush()
            except OSError:
                raise Failed(self.why("it ended")) from None
            return self.hear(timeout)

    def hear(self, timeout: float) -> dict[str, Any]:
        """Return its next message."""
        assert self.process.stdout
        end = time.perf_counter() + timeout
        while b"\n" not in self.line:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.perf_counter()))
            if not ready:
                raise Failed(self.why(f"no answer within {timeout:.0f} s"))
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                raise Failed(self.why("it ended"))
            self.line += more
        message, self.line = self.line.split(b"\n", 1)
        return json.loads(message)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Wake a frozen process for its turn."""
        if self.contestant.freeze:
            os.kill(self.process.pid, signal.SIGCONT)
        yield
        if self.contestant.freeze:
            os.kill(self.process.pid, signal.SIGSTOP)

    def weigh(self) -> None:
        """Note the memory that it takes, and the files that it maps, where that is the most so far."""
        memory, mapped = memory_mb(self.process.pid)
        self.memory = max(self.memory[0], memory), max(self.memory[1], mapped)

    def why(self, what: str) -> str:
        """Return a reason with the last line that the process left."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"{what}: {lines[-1].strip()[:200]}" if lines else what

    def close(self) -> None:
        """End the process and all that it started."""
        family = descendants(self.process.pid)
        with suppress(subprocess.TimeoutExpired):
            if self.process.stdin:
                with suppress(OSError):
                    self.process.stdin.close()
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.wait(10)
        for pid in reversed(family):
            if pid != self.process.pid or self.process.poll() is None:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def environment(contestant: Contestant) -> dict[str, str]:
    """Return the environment of a contestant: one thread, and this checkout importable."""
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_TELEMETRY_ENABLED": "0"}
    return os.environ | ours | contestant.env


def race(contestants: Sequence[Contestant], folder: Path, rounds: int, warmup: int, scratch: Path, log: Log,
         block: int = 1, patience: float = 60.0, timeout: float = 300.0) -> None:
    """Run all contestants on a case, round by round in turns, and log every measurement.

    A turn is ``block`` consecutive rounds; ``patience`` is how many seconds in all may be spent on waiting for
    an idle machine. A contestant that fails is logged and left out from there on.
    """
    racers: list[Racer] = []
    calm = Patience(patience)
    try:
        for contestant in contestants:
            if not contestant.missing:
                calm.wait(NOISY)
                racer = Racer(contestant, folder, scratch)
                racers.append(racer)
                with attempt(racers, racer, log):
                    ready = racer.hear(timeout)
                    log({"kind": "ready", "name": contestant.name, "versions": ready["versions"],
                         "seconds": time.perf_counter() - racer.began})
                    if contestant.freeze:
                        os.kill(racer.process.pid, signal.SIGSTOP)
            else:
                log({"kind": "skipped", "name": contestant.name, "reason": contestant.missing})
        for first in range(0, warmup + rounds, block):
            for racer in list(racers):
                busy = calm.wait(NOISY)
                with attempt(racers, racer, log):
                    for r in range(first, min(first + block, warmup + rounds)):
                        answer = racer.go(timeout)
                        if r >= warmup:
                            log({"kind": "round", "name": racer.contestant.name, "round": r,
                                 "seconds": answer["seconds"], "busy": round(busy, 2), "noisy": busy > NOISY})
                    racer.weigh()
        for racer in list(racers):
            with attempt(racers, racer, log):
                final = racer.go(timeout)
                log({"kind": "final", "name": racer.contestant.name, "accuracy": final["accuracy"],
                     "memory_mb": racer.memory[0], "mapped_mb": racer.memory[1], "model": str(racer.model)})
    finally:
        for racer in racers:
            racer.close()


@contextmanager
def attempt(racers: list[Racer], racer: Racer, log: Log) -> Iterator[None]:
    """Leave a contestant out once it fails."""
    try:
        yield
    except (Failed, OSError, ValueError, KeyError) as error:
        log({"kind": "skipped", "name": racer.contestant.name, "reason": " ".join(str(error).split())})
        racers.remove(racer)
        racer.close()


def race_whole(contestants: Sequence[Contestant], folder: Path, repeats: int, scratch: Path, log: Log,
               patience: float = 60.0, timeout: float = 300.0,
               read: Callable[[Contestant, Path, str], tuple[float, Path]] | None = None) -> None:
    """Time whole processes, from start to end, in turns.

    ``read`` returns the accuracy and the file of the final weights, from what a process printed.
    """
    calm = Patience(patience)
    left = [c for c in contestants if not c.missing]
    for contestant in contestants:
        if contestant.missing:
            log({"kind": "skipped", "name": contestant.name, "reason": contestant.missing})
    for repeat in range(repeats + 1):  # the first is not timed: it fills the disk cache
        for contestant in list(left):
            busy = calm.wait(NOISY)
            model = scratch / f"{''.join(c if c.isalnum() else '-' for c in contestant.name)}.npy"
            command = contestant.filled(folder, model)
            began = time.perf_counter()
            try:
                done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout,
                                      env=environment(contestant), stdin=subprocess.DEVNULL)
                seconds = time.perf_counter() - began
                if done.returncode:
                    raise Failed((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200])
                accuracy, model = (read or printed)(contestant, model, done.stdout)
            except (Failed, subprocess.TimeoutExpired, ValueError, KeyError, IndexError, OSError) as error:
                log({"kind": "skipped", "name": contestant.name, "reason": " ".join(str(error).split())[:300],
                     "command": shlex.join(command)})
                left.remove(contestant)
                continue
            if repeat:
                log({"kind": "round", "name": contestant.name, "round": repeat, "seconds": seconds,
                     "busy": round(busy, 2), "noisy": busy > NOISY})
            if repeat == repeats:
                log({"kind": "final", "name": contestant.name, "accuracy": accuracy, "model": str(model)})


def printed(contestant: Contestant, model: Path, output: str) -> tuple[float, Path]:
    """Return the accuracy from the last line of the protocol."""
    return json.loads(output.strip().splitlines()[-1])["accuracy"], model

