"""One run under a few faults: a process of its own, resumed as often as its end says that it can be."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import CheckpointError, FedlearnError
from ..faults import Fault, Faults
from ..tracking.run_folder import RunFolder
from .processes import NAME, end, left

RESUMABLE = (4, 6, 75)  # exit codes of runs that can be resumed: workers lost, no room, asked to stop
WAITED = {"freeze", "hang", "drop", "cut"}  # kinds that are noticed when a limit of the backend is over
TAIL = 4000             # characters of what a command said that are kept

# What runs a command line of `fedlearn` to its end: (arguments, environment, file for what it says, seconds at most)
# -> its exit code, None if it did not end in time.
Launch = Callable[[Sequence[str], Mapping[str, str], Path, float], int | None]


@dataclass(frozen=True)
class Setting:
    """What the trials of a rehearsal have in common.

    ``overrides`` are those of `fedlearn run`, ``limits`` more of them for faults that are only noticed when a limit of
    the backend is over; ``patience`` is how many seconds a command may take.
    """

    overrides: tuple[str, ...]
    folder: Path
    patience: float
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One command of a trial: when it ran (seconds since the epoch), how it ended, and its last words."""

    command: list[str]
    began: float
    ended: float
    code: int | None
    said: str

    @property
    def last_words(self) -> str:
        """The last line that it said."""
        return self.said.rpartition("\n")[2]

    @property
    def resumable(self) -> bool:
        """Whether the run that this left can go on."""
        if self.code in (0, None):
            return False
        return self.code < 0 or self.code in RESUMABLE or "resume" in self.last_words


@dataclass
class Trial:
    """A trial, and what came of it.

    ``fired`` says by number of the fault when and in which process it fired; ``rounds`` is (round, when it was
    committed) over all attempts; ``digests`` the SHA-256 of the server state by round, ``sha256`` that of the final
    model. ``orphans`` are processes that were alive after the end, ``strays`` temporary files.
    """

    name: str
    faults: tuple[Fault, ...]
    home: Path
    fired: dict[int, tuple[float, int]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    rounds: list[tuple[int, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    sha256: str = ""
    orphans: dict[int, str] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether the run came to its last round."""
        return bool(self.attempts) and self.attempts[-1].code == 0 and bool(self.sha256)

    @property
    def seconds(self) -> float:
        """How long it took, from the first start to the last end."""
        return self.attempts[-1].ended - self.attempts[0].began if self.attempts else 0.0

    def look(self) -> None:
        """Take in what the run's folder says; called after every attempt, since a resumed run drops some of it."""
        from ..checkpoint import load_model

        folder = self.run_folder()
        if folder is None:
            return
        known = set(self.rounds)
        for line in folder.ledger():
            self.digests[line["round"]] = line["sha256"]
            if (new := (line["round"], seconds_of(line["time"]))) not in known:
                self.rounds.append(new)
        self.events = folder.events()
        if (folder.path / "model.json").exists():
            try:
                self.sha256 = str(load_model(folder.path)[1]["sha256"])
            except CheckpointError:
                self.sha256 = ""

    def recovered(self, fault: Fault, when: float) -> float | None:
        """Return when the run was where it would have been without a fault that fired at ``when``; None: never."""
        # Who checkpoints counts from 1 the rounds that are done; an idle worker is missed in the next round.
        target = fault.round + (2 if fault.point == "idle" else 1)
        later = [at for round, at in self.rounds if at > when and round >= target]
        return min(later, default=self.attempts[-1].ended if self.ended else None)

    def run_folder(self) -> RunFolder | None:
        """Return the folder of its run, if it came so far as to make one."""
        found = sorted(path.parent for path in self.home.glob("runs/*/*/config.yaml") if not path.parent.is_symlink())
        return RunFolder(found[0]) if found else None


def run(setting: Setting, name: str, faults: Sequence[Fault] = (), launch: Launch | None = None) -> Trial:
    """Run the configuration under these faults to its end, or to where it cannot be resumed, and leave no process."""
    trial = Trial(name, tuple(faults), setting.folder / name)
    marks = trial.home / "faults"
    marks.mkdir(parents=True)
    # Short, or the sockets that some backends make there would not fit in a path.
    temporary = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp" if Path("/tmp").is_dir() else None))
    mark = uuid4().hex
    environ = {**os.environ, NAME: mark, "TMPDIR": str(temporary),
               "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    command = ["run", *setting.overrides, f"runs={quoted(trial.home / 'runs')}", "progress=none", "tracking=none"]
    if faults:
        command.append(f"faults={as_override(Faults(trial.faults, marks))}")
    if any(fault.kind in WAITED for fault in faults):
        command += setting.limits
    try:
        for n in range(2 * len(faults) + 2 if faults else 1):
            trial.attempts.append(attempt(command, environ, trial.home / f"attempt-{n}.log", setting.patience, launch))
            trial.look()
            folder = trial.run_folder()
            if not trial.attempts[-1].resumable or folder is None:
                break
            command = ["resume", str(folder.path), "progress=none"]
        trial.orphans = left(mark)
        trial.fired = Faults(trial.faults, marks).fired()
    finally:
        end(mark)
        trial.strays = sorted(str(path.name) for path in temporary.iterdir())
        shutil.rmtree(temporary, ignore_errors=True)
    return trial


def attempt(command: list[str], environ: Mapping[str, str], log: Path, patience: float,
            launch: Launch | None) -> Attempt:
    """Run one command to its end."""
    began = time.time()
    code = (launch or here)(command, environ, log, patience)
    return Attempt(command, began, time.time(), code, log.read_text(errors="replace").strip()[-TAIL:])


def here(arguments: Sequence[str], environ: Mapping[str, str], log: Path, patience: float) -> int | None:
    """Run `fedlearn` with these arguments as a process of this machine."""
    with log.open("wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "fedlearn", *arguments], env=environ, stdout=said,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # its time is over, or ours
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def as_override(faults: Faults) -> str:
    """Return a schedule as Hydra reads it in ``faults=...``."""
    entries = ("{" + ",".join(f"{key}:{quoted(value) if isinstance(value, str) else str(value).lower()}"
                              for key, value in asdict(fault).items()) + "}" for fault in faults.schedule)
    return f"{{folder:{quoted(faults.folder.resolve())},schedule:[{','.join(entries)}]}}"


def quoted(text: object) -> str:
    """Return a text as Hydra reads it, whatever it holds.

    Raises:
        FedlearnError: for a name that ends in a backslash, which Hydra cannot read.
    """
    plain = str(text)
    if plain.endswith("\\"):
        raise FedlearnError(f"{plain}: found a name that ends in a backslash; name another folder")
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", plain) + "'"


def seconds_of(stamp: str) -> float:
    """Return a time of the ledger in seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp()
