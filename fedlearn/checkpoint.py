"""Checkpoints and saved models: safetensors and JSON, no pickle, complete or not there at all.

A checkpoint is a folder ``round-00000012`` with ``state.safetensors`` and ``state.json``. It is written
under a hidden name beside its place, every file and folder is synced to disk, and then it is renamed:
whoever is killed at whatever moment leaves either the whole checkpoint or none. The JSON holds the round, and size
and SHA-256 of the tensor file, and is sealed by a SHA-256 of its own, so that no altered byte goes unnoticed, nor a
folder under another round's name. One process writes to a folder at a time.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from torch import Tensor

from .errors import CheckpointError, in_range
from .faults import at
from .sealed import HIDDEN, describe, jsonable, read_pair, sync_folder, write_pair

ROUND = re.compile(r"round-([0-9]{8,18})(?:\.([0-9]{1,9}))?")  # .1 if the round was saved again, .2 the next time


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
        meta = jsonable(snapshot.meta, "meta")
        try:
            at("disk", round)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            again = [n for r, n, _ in self._found() if r == round]
            final = self.folder / (f"round-{round:08d}" + (f".{max(again) + 1}" if again else ""))
            with self._hidden() as folder:
                write_pair(folder, "state", snapshot.tensors, meta, {"round": round})
                sync_folder(folder)
                at("checkpoint", round)
                folder.rename(final)
            sync_folder(self.folder)
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
                _described(folder, round)
            except CheckpointError:
                continue
            rounds.add(round)
        return sorted(rounds)

    def meta(self, round: int) -> dict[str, Any]:
        """Return the ``meta`` of a round without reading its tensors.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        return _described(self._place(round), round)["meta"]

    def load(self, round: int | None = None,
             usable: Callable[[int, Snapshot], None] = lambda round, snapshot: None) -> tuple[int, Snapshot]:
        """Return (round, snapshot): of the asked round, or of the newest checkpoint that is intact.

        A damaged one on the way to it is reported as a warning, and so is one that ``usable`` refuses, by a
        CheckpointError.

        Raises:
            CheckpointError: if there is none that is intact, saying what is wrong with each.
        """
        if round is not None:
            return round, _snapshot(self._place(round), round)
        damage: list[str] = []
        for r, _, folder in self._found():
            try:
                snapshot = _snapshot(folder, r)
                usable(r, snapshot)
            except CheckpointError as error:
                damage.append(str(error) if str(folder) in str(error) else f"{folder}: {error}")
                continue
            for what in damage:
                warnings.warn(f"damaged checkpoint passed over: {what}; going on from round {r}",
                              stacklevel=2)
            return r, snapshot
        if damage:
            raise CheckpointError(f"no usable checkpoint in {self.folder}: {'; '.join(damage)}; put back one "
                                  "of these folders from a copy, or start a new run")
        raise CheckpointError(f"no checkpoint in {self.folder}: found no folder round-*; the run ended "
                              "before its first one; start it anew")

    def _place(self, round: int) -> Path:
        places = [folder for r, _, folder in self._found() if r == round]
        if not places:
            have = ", ".join(map(str, self.rounds())) or "none"
            raise CheckpointError(f"no checkpoint of round {round} in {self.folder}; there are: {have}")
        return places[0]

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
                _remove(self.folder / name)

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
                _remove(hidden)


def save_model(folder: Path, x_named: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json``, which says what the model is, into a folder.

    Raises:
        CheckpointError: if they cannot be written.
        ValueError: if JSON cannot hold ``about``.
    """
    meta = jsonable(dict(about), "about")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_pair(folder, "model", x_named, meta, {})
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"model cannot be written to {folder}: {error}; make room, then "
                              "resume") from error


def load_model(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``save_model`` was given: the named tensors, and what they are.

    Raises:
        CheckpointError: if a file is missing, cut short or altered.
    """
    tensors, description = read_pair(folder, "model")
    return tensors, description["meta"]


def _snapshot(folder: Path, round: int) -> Snapshot:
    """Return what a checkpoint's folder holds, every byte of it checked."""
    _described(folder, round)   # before anything large is read
    tensors, description = read_pair(folder, "state")
    return Snapshot(tensors, description["meta"])


def _described(folder: Path, round: int) -> dict[str, Any]:
    """Return the description of a round's checkpoint."""
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a link; put the folder itself there")
    description = describe(folder, "state")
    if type(description.get("round")) is not int or description["round"] != round:
        raise CheckpointError(f"{folder} holds round {description.get('round')!r}, not {round}; give it back its name")
    return description


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else has its name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
