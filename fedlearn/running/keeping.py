"""The checkpoints of a run as it goes: one that cannot be written does not end a run that can go on."""

from __future__ import annotations

from typing import Any

from ..checkpoint import Checkpoints, Snapshot
from ..errors import CheckpointError, ResourceError, Stopped
from ..experiment import Experiment, Loop
from ..tracking.run_folder import RunFolder
from ..work import Workers
from ..worker.state_files import StateFiles
from .lines import note
from .restore import restore
from .stopping import Stopping


class Keeping:
    """Saves the checkpoints of a run in its folder; ``newest`` is the round of the last one (None: there is none)."""

    def __init__(self, e: Experiment, loop: Loop, workers: Workers, folder: RunFolder,
                 newest: int | None = None) -> None:
        self.e, self.loop, self.workers, self.folder, self.newest = e, loop, workers, folder, newest
        self.checkpoints = Checkpoints(folder.checkpoints, e.checkpoint_keep)
        self.states = StateFiles(folder.states)
        if newest is not None:      # it was written after its states
            self.states.synced = {tuple(pair) for pair in self.checkpoints.meta(newest)["states"]}

    def save(self, done: int, must: bool = False) -> None:
        """Save the state after so many rounds; what cannot be written is tried again next time.

        A checkpoint stands for rounds whose lines are on disk: those that wait for room go first.

        Raises:
            CheckpointError: if it ``must`` be written, for there is no next time, and cannot.
        """
        if self.newest == done:
            return
        try:
            self.folder.settle()
            self._save(done)
        except (CheckpointError, ResourceError, OSError) as error:
            why = _cause(error)
            if must:
                raise CheckpointError(self._lost(done, why)) from error
            note([{"event": "checkpoint not written", "round": done, "why": why, "newest": self.newest}], self.folder)

    def _save(self, done: int) -> None:
        """Save a checkpoint, the clients' states before it and the clean-up of old ones after it."""
        tensors, meta = self.loop.snapshot()
        states = self.loop.states()
        self.workers.commit(states)
        self.states.sync(states)
        self.checkpoints.save(done, Snapshot(tensors, {"loop": meta, "states": states, "identity": self.e.identity()}))
        self.newest = done
        kept = [tuple(pair) for r in self.checkpoints.rounds() for pair in self.checkpoints.meta(r)["states"]]
        self.workers.commit(states, kept)

    def _lost(self, done: int, why: str) -> str:
        since = "there is no earlier one" if self.newest is None else f"the newest is of round {self.newest}"
        return (f"the checkpoint after round {done} of {self.e.rounds} cannot be written to {self.folder.path}: {why} "
                f"({since}); what came after it is lost with this process, lines and model included; make room there, "
                "then resume: the same rounds run again, to the same result")


def go_back(done: int, loop: Loop, lines: list[dict[str, Any]], keeping: Keeping | None, stopping: Stopping) -> None:
    """Leave a round that was given up: the run ends as it was before it, or, where that is gone, at its checkpoint.

    What it was before it is not saved here.

    Raises:
        Stopped: if there is nothing to go back to.
    """
    if stopping.whole:
        stopping.ended = done
        return
    if keeping is None or keeping.newest is None:
        further = how_to_go_on(keeping.folder if keeping else None)
        raise Stopped(f"stopped by {stopping.reason()} in the middle of round {done + 1}, which cannot be undone, "
                      f"before the first checkpoint; {further}", code=stopping.code())
    stopping.ended, snapshot = keeping.checkpoints.load(keeping.newest)
    restore(loop, stopping.ended, snapshot)
    lines[:] = [line for line in lines if line["round"] <= stopping.ended]


def how_to_go_on(folder: RunFolder | None) -> str:
    """Return in a sentence how a run that was stopped is gone on with."""
    if folder is None:
        return "a run with a folder could be resumed"
    if folder.config.exists():
        return f"`fedlearn resume {folder.path}` goes on from there"
    return f"the same call with folder={str(folder.path)!r} and resume=True goes on from there"


def _cause(error: Exception) -> str:
    """Return in a few words why something could not be written."""
    cause = error if isinstance(error, OSError) else error.__cause__ or error
    return getattr(cause, "strerror", None) or " ".join(str(cause).split())
