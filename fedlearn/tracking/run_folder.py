"""The folder of a run, ``runs/<name>/<id>/``: made, found again, written line by line.

Metrics and ledger are JSON lines, each written whole and flushed. The ledger holds a line for every round, and one for
everything that happened on the way, with the key ``event``: a worker that was lost, an update that was refused, a
stop, a resume. Those stay when a run goes back to an earlier checkpoint. JSON has no NaN and no infinity: they
are written as the texts ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, so that any JSON reader can read
the files, and become floats again here. A last line that was cut short (the process was killed) does not
count, and makes room for the next one.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from ..errors import ConfigError, FedlearnError

ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")
LATEST = "latest"
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run, below ``path``."""

    path: Path

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
        """Write the composed configuration (YAML text) in one piece."""
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
        """Add a line to metrics.jsonl."""
        _append(self.path / "metrics.jsonl", line)

    def append_ledger(self, line: Mapping[str, Any]) -> None:
        """Add a line to ledger.jsonl."""
        _append(self.path / "ledger.jsonl", line)

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add to ledger.jsonl what happened, and when."""
        self.append_ledger({**event, "time": datetime.now(UTC).isoformat(timespec="milliseconds")})

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl.

        Raises:
            FedlearnError: if a whole line is not JSON, naming it.
        """
        return _lines(self.path / "metrics.jsonl")

    def ledger(self) -> list[dict[str, Any]]:
        """Return the lines of ledger.jsonl about rounds; raises as ``metrics`` does."""
        return [line for line in _lines(self.path / "ledger.jsonl") if "event" not in line]

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of ledger.jsonl about what happened on the way; raises as ``metrics`` does."""
        return [line for line in _lines(self.path / "ledger.jsonl") if "event" in line]

    def truncate(self, round: int) -> None:
        """Drop the metrics and ledger lines of rounds after ``round``, each file in one piece."""
        for path in (self.path / "metrics.jsonl", self.path / "ledger.jsonl"):
            if path.exists():
                _replace(path, "".join(_dumps(line) for line in _lines(path)
                                       if "event" in line or line["round"] <= round))

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run while working on it; ends with the process, however that ends.

        Raises:
            FedlearnError: if another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FedlearnError(f"{self.path}: another process is working on this run; wait for it, or "
                                    "stop it first") from None
            yield


def _age(path: Path) -> tuple[str, int]:
    return path.name[:15], path.stat().st_mtime_ns


def _plain(value: Any) -> Any:
    """Return what strict JSON can hold: scalars of NumPy and torch unwrapped, non-finite numbers as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_restored(child) for child in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _dumps(line: Mapping[str, Any]) -> str:
    return json.dumps(_plain(line), allow_nan=False) + "\n"


def _append(path: Path, line: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # what a killed writer began
        file.write(_dumps(line).encode())


def _lines(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes() if path.exists() else b""
    lines = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # the last part is empty, or was cut short
        try:
            lines.append(_restored(json.loads(line)))
        except ValueError:
            raise FedlearnError(f"{path}, line {number}: found {line[:40]!r}, which is not JSON; remove this "
                                "line, or put the file back from a copy") from None
    return lines


def _replace(path: Path, text: str) -> None:
    """Write a file so that it holds either its old or its new content, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.writing")
    with hidden.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)
