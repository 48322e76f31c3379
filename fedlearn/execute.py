"""The composition root: it opens the workers, turns the rounds, and keeps the run's folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoints, Snapshot, save_model
from .errors import FedlearnError
from .experiment import Experiment, Loop, RoundReport
from .tracking import Tracker
from .tracking.progress import Progress
from .tracking.run_folder import RunFolder
from .vectors import digest, load
from .work import Setup, Workers

log = logging.getLogger("fedlearn")


@dataclass
class History:
    """What a run leaves behind.

    ``metrics`` is the list of the lines of metrics.jsonl; ``x`` the final model as a vector [P] and
    ``sha256`` its digest; ``model`` the module with these weights where the task has one;
    ``folder`` the run's folder, if it has one.
    """

    metrics: list[dict[str, Any]]
    x: Tensor
    model: nn.Module | None = None
    folder: Path | None = None
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        self.sha256 = digest(self.x)

    def final(self, name: str) -> float:
        """Return the last value of a metric, e.g. ``test_accuracy``."""
        return next(line[name] for line in reversed(self.metrics) if name in line)


def execute(experiment: Experiment, folder: RunFolder | None = None, trackers: Sequence[Tracker] = (),
            progress: str = "none", title: str = "", config: dict[str, Any] | None = None,
            resume: bool = False) -> History:
    """Run an experiment to its last round and return its history.

    With a ``folder`` every round is recorded there and checkpoints are kept; with ``resume`` the run
    continues from the newest good one. On a torchrun rank other than 0 this serves rank 0 and
    returns the same model with no metrics.

    Raises:
        FedlearnError: with one line that says what is wrong and what to do.
    """
    torch.set_num_threads(1)
    e = experiment
    task = e.protocol.prepare(e)
    setup = Setup(algorithm=e.algorithm, task=task, schedule=e.schedule, rounds=e.rounds, clock=e.clock, seed=e.seed,
                  pipeline=e.pipeline, reduce=e.reduce, oracle=e.oracle, stack=e.stack,
                  states=folder.states if folder else None)
    workers = e.backend.open(setup)
    try:
        if workers.rank > 0:
            return _finished(e, workers.serve()["x"], [], None)
        log.info("work runs %s", e.backend.describe())
        loop = e.protocol.start(e, workers)
        with Progress(progress, e.rounds, title) as bar:
            everybody: list[Tracker] = [*trackers, bar]
            lines = _rounds(e, loop, workers, folder, everybody, config or {}, resume)
            history = _finished(e, loop.model().clone(), lines, folder)
            for tracker in everybody:
                tracker.finished({"sha256": history.sha256, **lines[-1]})
        workers.close({"x": history.x})
        return history
    finally:
        workers.close()


def _rounds(e: Experiment, loop: Loop, workers: Workers, folder: RunFolder | None, trackers: Sequence[Tracker],
            config: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    checkpoints = Checkpoints(folder.checkpoints, e.checkpoint_keep) if folder else None
    first, lines = 0, []
    if resume and folder and checkpoints:
        first, snapshot = checkpoints.load()
        loop.restore(snapshot.tensors, snapshot.meta["loop"])
        folder.truncate(first)
        lines = folder.metrics()
    for tracker in trackers:
        tracker.started(folder.path if folder else None, config)
    if not lines:
        lines.append({"round": 0, **_evaluate(e, loop)})
        _tell(lines[-1], None, folder, trackers)
    for r in range(first, e.rounds):
        report = loop.round(r)
        done = r + 1
        line = _line(done, report)
        if done == e.rounds or (e.evaluate_every and done % e.evaluate_every == 0):
            began = perf_counter()
            line |= _evaluate(e, loop)
            line["seconds"]["evaluate"] = perf_counter() - began
        lines.append(line)
        _tell(line, report, folder, trackers)
        if checkpoints and (done == e.rounds or (e.checkpoint_every and done % e.checkpoint_every == 0)):
            _checkpoint(done, loop, workers, checkpoints)
    return lines


def _checkpoint(done: int, loop: Loop, workers: Workers, checkpoints: Checkpoints) -> None:
    """Save a checkpoint, the clients' states before it and the clean-up of old ones after it."""
    tensors, meta = loop.snapshot()
    versions = loop.versions()
    workers.commit(versions)
    checkpoints.save(done, Snapshot(tensors, {"loop": meta, "states": sorted(versions.items())}))
    kept = [tuple(pair) for r in checkpoints.rounds() for pair in checkpoints.meta(r)["states"]]
    workers.commit(versions, kept)


def _line(done: int, report: RoundReport) -> dict[str, Any]:
    records = report.records
    steps = sum(record.steps for record in records)
    return {"round": done, "clients": len(records),
            "train_loss": sum(record.loss * record.steps for record in records) / max(steps, 1),
            "bytes_down": report.bytes_down, "bytes_up": report.bytes_up, "seconds": dict(report.seconds),
            "simulated_seconds": report.simulated, **report.extra}


def _evaluate(e: Experiment, loop: Loop) -> dict[str, float]:
    return {f"test_{name}": value for name, value in e.task.evaluate(loop.model()).items()}


def _tell(line: dict[str, Any], report: RoundReport | None, folder: RunFolder | None,
          trackers: Sequence[Tracker]) -> None:
    if folder:
        folder.append_metrics(line)
        if report:
            accepted = [record.client for record in report.records]
            folder.append_ledger({"round": line["round"], "cohort": list(report.cohort), "accepted": accepted,
                                  "sha256": report.digest})
    for tracker in trackers:
        tracker.round(line)


def _finished(e: Experiment, x: Tensor, lines: list[dict[str, Any]], folder: RunFolder | None) -> History:
    model = getattr(e.task, "model", None)
    if isinstance(model, nn.Module):
        load(model, x)
    history = History(lines, x, model, folder.path if folder else None)
    if folder:
        named = e.task.named(x) if hasattr(e.task, "named") else {"x": x}
        about = {"sha256": history.sha256, "rounds": e.rounds, "algorithm": type(e.algorithm).__name__}
        save_model(folder.path, named, json.loads(json.dumps(about)))
    return history


__all__ = ["FedlearnError", "History", "execute"]
