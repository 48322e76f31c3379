"""The folder of a run, ``runs/<name>/<id>/``: made, found again, written line by line.

Metrics and ledger are JSON lines, each written whole and flushed. The ledger holds a line for every round, and one for
everything that happened on the way, with the key ``event``: a worker that was lost, an update that was refused, a
stop, a resume. Those stay when a run goes back to an earlier checkpoint. JSON has no NaN and no infinity: they
are written as the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, so that any JSON reader can read
the files, and become floats again here. A last line that was cut short (the process was killed) does not
count, and makes room for the next one. Lines for which the disk has no room wait in memory, and are written before
the next one as soon as it has.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import ConfigError, FedlearnError, ResourceError
from ..faults import at
from .json_lines import dumps, lines_of, write_lines

log = logging.getLogger("fedlearn")

ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run, below ``path``; ``unwritten`` holds the lines, by file, that still wait for room."""

    path: Path
    unwritten: dict[str, list[bytes]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def create(cls, root: str | Path, name: str) -> RunFolder:
        """Make ``root/name/<id>`` and let ``root/name/latest`` point to it.

        The id is the time in UTC and six random digits, ``20261122-005601-a1b2c3``.

        Raises:
            ConfigError: if ``name`` cannot name a folder, or the folder cannot be made.
        """
        if not NAME.fullmatch(name) or name == LATEST or ID.fullmatch(name):
            raise ConfigError("name", name, f"letters, digits and . _ + = -, but not {LATEST!r}")
        while True:
            path = Path(root) / name / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{token_hex(3)}"
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                if path.is_dir():
                    continue  # taken in this very second: draw again
                raise ConfigError("runs", str(root), "a folder, not a file", "Name another one.") from None
            except OSError as error:
                raise ConfigError("runs", str(root), "a folder that can be written to",
                                  f"The system says: {error.strerror}.") from None
        link = path.with_name(f".{path.name}.link")
        with suppress(OSError):  # a file system without symbolic links
            link.symlink_to(path.name)
            link.replace(path.with_name(LATEST))
        return cls(path)

    @classmethod
    def open(cls, run: str | Path, root: str | Path = "runs") -> RunFolder:
        """Find a run by its path, ``name/id``, the beginning of its id, its name, or ``latest``.

        A name (or ``name/latest``) means the newest run of that name, ``latest`` the newest of all.

        Raises:
            ConfigError: if there is none, or more than one; lists the candidates.
        """
        for place in (Path(run), Path(root) / run):
            if str(run) and ((place / "config.yaml").is_file() or (place / "metrics.jsonl").is_file()):
                return cls(place.resolve() if place.is_symlink() else place)
        every = sorted((p for p in Path(root).glob("*/*") if ID.fullmatch(p.name) and p.is_dir()), key=_age)
        name, _, start = str(run).rstrip("/").rpartition("/")
        if start == LATEST:
            found = [p for p in every if name in ("", p.parent.name)][-1:]
        else:
            found = [p for p in every if name in ("", p.parent.name) and start and p.name.startswith(start)]
            found = found or [p for p in every if p.parent.name == str(run).rstrip("/")][-1:]
        if len(found) == 1:
            return cls(found[0])
        listed = [f"{p.parent.name}/{p.name}" for p in reversed(found or every)]
        more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
        candidates = f"under {root}: {', '.join(listed[:8])}{more}" if listed else f"but {root} holds no run"
        raise ConfigError("run", str(run), "a run folder, name/id, the beginning of one id, a name or "
                          f"{LATEST}, {candidates}")

    @property
    def id(self) -> str:
        """The id of the run, the last part of its path."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The composed configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def states(self) -> Path:
        """The folder of the clients' states."""
        return self.path / "states"

    def write_config(self, text: str) -> None:
        """Write the composed configuration (YAML text) in one piece.

        Raises:
            ResourceError: if it cannot be written.
        """
        _replace(self.config, text)

    def config_text(self) -> str:
        """Return the composed configuration.

        Raises:
            FedlearnError: if the folder holds none.
        """
        try:
            return self.config.read_text(encoding="utf-8")
        except OSError as error:
            raise FedlearnError(f"{self.config}: {error.strerror}; a run folder holds one; name another run, "
                                "or put it back") from None

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl, now or as soon as there is room."""
        self._append("metrics.jsonl", line)

    def append_ledger(self, line: Mapping[str, Any]) -> None:
        """Add a line to ledger.jsonl, now or as soon as there is room."""
        self._append("ledger.jsonl", line)

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add to ledger.jsonl what happened, and when."""
        self.append_ledger({**event, "time": now()})

    def settle(self) -> None:
        """Write the lines that wait for room.

        Raises:
            OSError: if there still is none.
        """
        for name, lines in self.unwritten.items():
            if lines:
                write_lines(self.path / name, b"".join(lines))
                log.warning("%s can be written again: %d lines that waited are in it", self.path / name, len(lines))
                lines.clear()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        data, lines = dumps(line).encode(), self.unwritten.setdefault(name, [])
        try:
            at("line", int(line.get("round", 0)))
            if lines:
                self.settle()
            write_lines(self.path / name, data)
        except OSError as error:
            if not lines:
                log.warning("%s cannot be written (%s): its lines wait in memory until there is room",
                            self.path / name, error.strerror)
            lines.append(data)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl.

        Raises:
            FedlearnError: if a whole line is not JSON, naming it.
        """
        return lines_of(self.path / "metrics.jsonl")

    def ledger(self) -> list[dict[str, Any]]:
        """Return the lines of ledger.jsonl about rounds; raises as ``metrics`` does."""
        return [line for line in lines_of(self.path / "ledger.jsonl") if "event" not in line]

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of ledger.jsonl about what happened on the way; raises as ``metrics`` does."""
        return [line for line in lines_of(self.path / "ledger.jsonl") if "event" in line]

    def truncate(self, round: int) -> None:
        """Drop the metrics and ledger lines of rounds after ``round``, each file in one piece.

        Raises:
            ResourceError: if a file cannot be written.
        """
        for path in (self.path / "metrics.jsonl", self.path / "ledger.jsonl"):
            if path.exists():
                _replace(path, "".join(dumps(line) for line in lines_of(path)
                                       if "event" in line or line["round"] <= round))

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run while working on it; ends with the process, however that ends.

        Raises:
            FedlearnError: if another process holds it.
            ResourceError: if the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FedlearnError(f"{self.path}: another process is working on this run; wait for it, or "
                                    "stop it first") from None
            yield


def now() -> str:
    """Return the present time, in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _age(path: Path) -> tuple[str, int]:
    return path.name[:15], path.stat().st_mtime_ns


def _replace(path: Path, text: str) -> None:
    """Write a file so that it holds either its old or its new content, whatever happens."""
    hidden = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
    except OSError as error:
        with suppress(OSError):
            hidden.unlink()
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"{path} cannot be written: found {error.strerror}; allowed: a disk with room, and a folder "
                         "that this user may write to; make room, then resume")
