"""Weights & Biases: the metrics of a run as a wandb run; the only importer of wandb, when a run starts.

The wandb run bears the id of the run folder, so a resumed run goes on in the same place. Its files lie in
the run folder; those of ``mode: offline`` are sent later by ``wandb sync``. wandb cannot take back what it was told,
so where an offline run is resumed its files are written anew, with every round once, and the old ones go.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import ConfigError, one_of
from .replay import flat, told_before
from .run_folder import ID

log = logging.getLogger("fedlearn")

MODES = ("online", "offline", "disabled")
_open: dict[str, Any] = {}  # the wandb runs of this process that are open, by id: wandb lets one be open once


@dataclass(frozen=True)
class Wandb:
    """Send the metrics to a wandb project; ``mode`` is online, offline or disabled."""

    project: str = "fedlearn"
    mode: str = "offline"
    name: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("mode", self.mode, one_of(MODES, self.mode))
        if not self.project:
            raise ConfigError("project", self.project, "the name of a wandb project")

    def tracker(self) -> WandbTracker:
        """Return the tracker that does it."""
        return WandbTracker(self)


class WandbTracker:
    """One wandb run, from ``started`` to ``finished``; should wandb fail on the way, the rounds go on without it."""

    def __init__(self, settings: Wandb) -> None:
        self.settings = settings
        self.run: Any = None
        self.first = 0  # wandb has the rounds before it

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Open the wandb run, and tell it the rounds so far.

        Raises:
            ConfigError: if wandb is not installed, or does not let us in.
        """
        s = self.settings
        try:
            import wandb
        except ImportError:
            raise ConfigError("tracking.wandb", s.mode, "an installed wandb", "Install it: pip install "
                              "'fedlearn[wandb]', or choose tracking=none.") from None
        name = s.name or (f"{folder.parent.name}/{folder.name}" if folder else None)
        earlier: list[Path] = []
        if folder and s.mode != "disabled":
            folder.mkdir(parents=True, exist_ok=True)
            earlier = list(folder.glob("wandb/offline-run-*"))
        id = _id(folder) if folder else None
        try:
            if left := _open.pop(id or "", None):   # by a run that ended in an error, and now goes on
                left.finish()
            if s.mode == "offline":     # within a second the new files would have the same name
                _remove(earlier)
            with _environment(folder, s.mode):
                self.run = wandb.init(
                    project=s.project, mode=s.mode, name=name, group=s.group, config=dict(config),  # type: ignore
                    dir=str(folder) if folder else None, id=id,
                    resume="allow" if folder and s.mode == "online" else None,
                    reinit="create_new",    # not whatever else this process has open
                    settings=wandb.Settings(silent=True, console="off", x_disable_stats=True))
        except Exception as error:
            raise ConfigError("tracking.wandb.mode", s.mode, one_of(MODES), "wandb says: "
                              f"{' '.join(str(error).split())} (for online: `wandb login`).") from error
        if s.mode != "disabled":
            _open[self.run.id] = self.run
            self.first = self.run.starting_step
            for line, ended in told_before(folder):
                self.round(line if ended is None else {**line, "_timestamp": ended})
            _remove(earlier if s.mode == "online" else ())

    def round(self, metrics: Mapping[str, Any]) -> None:
        """Log a round's metrics at its number; nested ones as ``seconds/work``."""
        number = int(metrics["round"])
        if self.run is None or number < self.first:
            return
        try:
            self.run.log(flat(metrics), step=number, commit=True)
        except Exception as error:  # whatever it is: it is about wandb, not about the run
            self._lose(f"from round {number} on", error)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close the wandb run; more than once is fine."""
        if self.run is None:
            return
        try:
            self.run.summary.update(flat(summary))
            _open.pop(self.run.id, None)
            self.run.finish()
        except Exception as error:
            self._lose("at the end", error)
        self.run = None

    def _lose(self, when: str, error: Exception) -> None:
        log.warning("wandb is lost %s (%s: %s); the run goes on, metrics.jsonl has it all, and `fedlearn resume` of "
                    "the run tells wandb what it lacks", when, type(error).__name__, " ".join(str(error).split()))
        _open.pop(self.run.id, None)
        self.run = None


def _id(folder: Path) -> str:
    """Return the id of the wandb run of a run folder: its own, or one that no other folder of this name has."""
    if ID.fullmatch(folder.name):
        return folder.name
    known = sorted(folder.glob("wandb/*run-*/run-*.wandb"))
    if known:
        return known[-1].stem.removeprefix("run-")
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', folder.name)}-{token_hex(3)}"


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(folder: Path | None, mode: str) -> Iterator[None]:
    """Keep wandb's own process, which starts now, where it belongs.

    It logs to the run folder where HOME cannot be written to; else it does so to the terminal. While it is to keep to
    this machine, it reports no statistics of itself; else it tries to, even in offline mode, and ends ten seconds later
    where the network swallows what is sent.
    """
    changes: dict[str, str] = {}
    home = os.environ.get("HOME", "")
    cache = os.environ.get("WANDB_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or (home and f"{home}/.cache")
    if folder and not _writable(cache):
        changes["WANDB_CACHE_DIR"] = str(folder / "wandb" / "cache")
    if mode != "online":
        changes["WANDB_ERROR_REPORTING"] = "false"
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _writable(cache: str) -> bool:
    if not cache:
        return False
    try:
        Path(cache, "wandb").mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(Path(cache, "wandb"), os.W_OK | os.X_OK)
