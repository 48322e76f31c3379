"""Checkpoints and saved models: safetensors and JSON, no pickle, complete or not there at all.

A checkpoint is a folder ``round-00000012`` with ``state.safetensors`` and ``state.json``. It is written
under a hidden name beside its place, every file and folder is synced to disk, and then it is renamed:
whoever is killed at whatever moment leaves either the whole checkpoint or none. The JSON holds size and
SHA-256 of the tensor file and is sealed by a SHA-256 of its own, so that no altered byte goes unnoticed.
One process writes to a folder at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from .errors import CheckpointError, in_range
from .faults import at

FORMAT = 1
ROUND = re.compile(r"round-(\d+)(?:\.(\d+))?")  # .1 if the round was saved again, .2 the next time
HIDDEN = ".writing-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Named tensors, and what JSON can hold: text keys, lists, numbers, text (tuples become lists)."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of a run in ``folder``, of which the last ``keep`` stay."""

    folder: Path
    keep: int = 3

    def __post_init__(self) -> None:
        in_range("checkpoint.keep", self.keep, least=1)

    def save(self, round: int, snapshot: Snapshot) -> Path:
        """Write the state after so many rounds and return its folder; remove old and later rounds'.

        Later rounds are those of a course that was left, when a run went back to an earlier checkpoint.

        Raises:
            CheckpointError: if it cannot be written (a full disk).
            ValueError: if JSON cannot hold ``snapshot.meta``.
        """
        meta = _jsonable(snapshot.meta, "meta")
        try:
            at("disk", round)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            again = [n for r, n, _ in self._found() if r == round]
            final = self.folder / (f"round-{round:08d}" + (f".{max(again) + 1}" if again else ""))
            with self._hidden() as folder:
                _write_pair(folder, "state", snapshot.tensors, meta, {"round": round})
                _sync(folder)
                at("checkpoint", round)
                folder.rename(final)
            _sync(self.folder)
            at("commit", round)
            self._prune(final, round)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint of round {round} cannot be written to {self.folder}: {error}; "
                                  "make room or name another place with runs=, then resume") from error
        return final

    def rounds(self) -> list[int]:
        """Return the rounds whose checkpoints have an intact description, oldest first."""
        rounds = set()
        for round, _, folder in self._found():
            try:
                _describe(folder, "state")
            except CheckpointError:
                continue
            rounds.add(round)
        return sorted(rounds)

    def meta(self, round: int) -> dict[str, Any]:
        """Return the ``meta`` of a round without reading its tensors.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        return self._one(round, lambda folder: _describe(folder, "state"))["meta"]

    def load(self, round: int | None = None) -> tuple[int, Snapshot]:
        """Return (round, snapshot): of the asked round, or of the newest checkpoint that is intact.

        A damaged one on the way to it is reported as a warning.

        Raises:
            CheckpointError: if there is none that is intact, saying what is wrong with each.
        """
        if round is not None:
            tensors, description = self._one(round, lambda folder: _read_pair(folder, "state"))
            return round, Snapshot(tensors, description["meta"])
        damage: list[str] = []
        for r, _, folder in self._found():
            try:
                tensors, description = _read_pair(folder, "state")
            except CheckpointError as error:
                damage.append(str(error))
                continue
            for what in damage:
                warnings.warn(f"damaged checkpoint passed over: {what}; going on from round {r}",
                              stacklevel=2)
            return r, Snapshot(tensors, description["meta"])
        if damage:
            raise CheckpointError(f"no usable checkpoint in {self.folder}: {'; '.join(damage)}; put back one "
                                  "of these folders from a copy, or start a new run")
        raise CheckpointError(f"no checkpoint in {self.folder}: found no folder round-*; the run ended "
                              "before its first one; start it anew")

    def _one(self, round: int, read: Any) -> Any:
        places = [folder for r, _, folder in self._found() if r == round]
        if not places:
            have = ", ".join(map(str, self.rounds())) or "none"
            raise CheckpointError(f"no checkpoint of round {round} in {self.folder}; there are: {have}")
        return read(places[0])

    def _found(self) -> list[tuple[int, int, Path]]:
        """Return (round, n, folder) of every checkpoint, newest first."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        matches = [m for name in names if (m := ROUND.fullmatch(name))]
        return sorted(((int(m[1]), int(m[2] or 0), self.folder / m[0]) for m in matches), reverse=True)

    @contextmanager
    def _hidden(self) -> Iterator[Path]:
        """Give a new hidden folder, which is removed if it is still there in the end."""
        folder = self.folder / f"{HIDDEN}{uuid4().hex}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what writers left that were killed."""
        for name in os.listdir(self.folder):
            if name.startswith(HIDDEN):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _prune(self, saved: Path, round: int) -> None:
        """Remove all but ``saved`` and the newest ``keep - 1`` before it; only after it is on disk."""
        earlier = [r for r in self.rounds() if r < round]
        stay = set(earlier[len(earlier) - min(self.keep - 1, len(earlier)):])
        seen: set[int] = set()
        for r, _, folder in self._found():
            superseded = r in seen
            seen.add(r)
            if folder != saved and (r not in stay or superseded):
                hidden = self.folder / f"{HIDDEN}{uuid4().hex}"  # a half removed one must not look like one
                folder.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)


def save_model(folder: Path, x_named: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json``, which says what the model is, into a folder.

    Raises:
        CheckpointError: if they cannot be written.
        ValueError: if JSON cannot hold ``about``.
    """
    meta = _jsonable(dict(about), "about")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_pair(folder, "model", x_named, meta, {})
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"model cannot be written to {folder}: {error}; make room, then "
                              "resume") from error


def load_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``save_model`` was given: the named tensors, and what they are.

    Raises:
        CheckpointError: if a file is missing, cut short or altered.
    """
    tensors, description = _read_pair(folder, "model")
    return tensors, description["meta"]


def _write_pair(folder: Path, stem: str, tensors: Mapping[str, Tensor], meta: Any,
                more: dict[str, Any]) -> None:
    """Write the tensor file, then the sealed JSON that describes it; each synced, then renamed."""
    path = folder / f"{stem}.safetensors"
    hidden = folder / f"{HIDDEN}{path.name}"
    safetensors.save_file(_owning(tensors), hidden)
    with hidden.open("rb") as file:
        size, sha256 = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    hidden.replace(path)
    about = {"name": path.name, "bytes": size, "sha256": sha256}
    body = {"format": FORMAT, **more, "file": about, "meta": meta}
    hidden = folder / f"{HIDDEN}{stem}.json"
    with hidden.open("wb") as file:
        file.write(_sealed(body))
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(folder / f"{stem}.json")


def _read_pair(folder: Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    description = _describe(folder, stem)
    path, file = folder / f"{stem}.safetensors", description["file"]
    data = _bytes(path)
    if len(data) != file["bytes"]:
        raise CheckpointError(f"{path} holds {len(data)} of {file['bytes']} bytes")
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise CheckpointError(f"{path} was altered: its SHA-256 is not the one in {stem}.json")
    try:
        return safetensors.load(data), description
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a safetensors file ({error})") from error


def _describe(folder: Path, stem: str) -> dict[str, Any]:
    """Return the sealed JSON of a pair, checked to the byte."""
    path = folder / f"{stem}.json"
    data = _bytes(path)
    try:
        body = json.loads(data)
        sealed = _sealed({key: value for key, value in body.items() if key != "seal"})
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not the JSON that was written ({len(data)} bytes: cut short or "
                              "altered)") from error
    if sealed != data:
        raise CheckpointError(f"{path} was altered: it does not match its seal")
    if body["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {body['format']}; this fedlearn reads {FORMAT}; use the "
                              "fedlearn that wrote it")
    return body


def _sealed(body: dict[str, Any]) -> bytes:
    """Return the one JSON text of ``body``, with a SHA-256 over it as its last key."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    seal = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-1]},"seal":"{seal}"}}\n'.encode()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error


def _owning(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, none sharing memory with another (safetensors refuses)."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        where = t.untyped_storage().data_ptr()
        plain[name] = t.clone() if where in seen else t
        seen.add(where)
    return plain


def _jsonable(value: Any, where: str) -> Any:
    """Return the value as JSON gives it back; NumPy and torch scalars become plain numbers."""
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where}: found the key {wrong[0]!r}; JSON takes text keys only")
        return {key: _jsonable(child, f"{where}.{key}") for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(child, f"{where}.{i}") for i, child in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise ValueError(f"{where}: found {type(value).__name__}; a checkpoint's meta takes what JSON can hold")


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
