"""The composition root: it opens the workers, turns the rounds, and keeps the run's folder."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import Checkpoints, Snapshot, save_model
from .combinations import name_of
from .errors import ConfigError, one_of
from .evaluation import Evaluation, Measured
from .experiment import Experiment, Loop, RoundReport
from .faults import at, lead
from .oracles.trial import try_hessian
from .profile import Profile
from .seeds import generator
from .tracking import Tracker
from .tracking.progress import Progress
from .tracking.run_folder import RunFolder
from .vectors import digest, load
from .work import Event, Setup, Workers
from .worker import oracle_for, pays_to_stack

log = logging.getLogger("fedlearn")

TIDY = 10   # rounds after which a run without checkpoints lets go of client states that nobody needs


@dataclass
class History:
    """What a run leaves behind.

    ``metrics`` is the list of the lines of metrics.jsonl; ``x`` the final model as a vector [P] and
    ``sha256`` its digest; ``model`` the module with these weights where the task has one;
    ``folder`` the run's folder, if it has one, and ``profile`` where the time of the rounds went, if that
    was asked for.
    """

    metrics: list[dict[str, Any]]
    x: Tensor
    model: nn.Module | None = None
    folder: Path | None = None
    profile: Profile | None = None
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        self.sha256 = digest(self.x)

    def final(self, name: str) -> float:
        """Return the last value of a metric, e.g. ``test_accuracy``.

        Raises:
            ConfigError: if no round has it, naming those that there are.
        """
        for line in reversed(self.metrics):
            if name in line:
                return line[name]
        raise ConfigError("metric", name, one_of({key for line in self.metrics for key in line}, name))


def execute(experiment: Experiment, folder: RunFolder | None = None, trackers: Sequence[Tracker] = (),
            progress: str = "none", title: str = "", config: dict[str, Any] | None = None,
            start: tuple[int, Snapshot] | None = None, profile: Profile | None = None) -> History:
    """Run an experiment to its last round and return its history.

    With a ``folder`` every round is recorded there and checkpoints are kept; ``start`` is what
    ``checkpoint_of`` found there, to continue from; a ``profile`` measures the rounds, and is written to
    the folder, too. On a torchrun rank other than 0 this serves rank 0 and returns the same history,
    without a profile.

    Raises:
        FedlearnError: with one line that says what is wrong and what to do.
    """
    e = experiment
    setup = setup_of(e, folder.states.resolve() if folder else None)
    with _callers_own():
        workers = e.backend.open(setup)
        try:
            if workers.rank > 0:
                final = workers.serve()
                return _finished(e, final["x"], json.loads(final["metrics"].numpy().tobytes()), None)
            own = getattr(workers, "worker", None)      # its task may lie on another device than ours
            oracle = own.oracle if own else oracle_for(setup)
            log.info("work runs on %s; gradients by %s%s", e.backend.describe(), oracle.describe(),
                     ", clients stacked" if setup.stack else "")
            if e.evaluate_samples is not None:
                log.info("evaluations stand on %d test samples, the last one on all of them", e.evaluate_samples)
            loop = e.protocol.start(e, workers)
            with Progress(progress, e.rounds, title) as bar:
                everybody: list[Tracker] = [*trackers, bar]
                with profile.watch(e, loop, workers, everybody) if profile else nullcontext(), lead(e.faults):
                    lines = _rounds(e, loop, workers, folder, everybody, config or {}, start)
                history = _finished(e, loop.model().clone(), lines, folder)
                if profile and folder:
                    profile.write(folder.path / "profile.json")
                history.profile = profile
                for tracker in everybody:
                    tracker.finished({"sha256": history.sha256, **lines[-1]})
            text = torch.frombuffer(bytearray(json.dumps(lines).encode()), dtype=torch.uint8)
            workers.close({"x": history.x, "metrics": text})
            return history
        finally:
            workers.close()


def setup_of(e: Experiment, states: Path | None = None) -> Setup:
    """Return what the workers of an experiment are sent; they keep their clients' states in a folder.

    Raises:
        ConfigError: if the oracle cannot be had, or has no second derivatives and the algorithm needs them.
    """
    setup = Setup(algorithm=e.algorithm, task=e.protocol.prepare(e), schedule=e.schedule, rounds=e.rounds,
                  clock=e.clock, seed=e.seed, pipeline=e.pipeline, reduce=e.reduce, oracle=e.oracle,
                  precision=e.precision, stack=e.stack is True, states=states, state_memory=e.state_memory,
                  on_bad_update=e.on_bad_update, max_update_norm=e.max_update_norm, faults=e.faults)
    rounds = e.protocol.verb == "map_reduce" and e.clients_at_a_time > 1
    asked = e.stack == "auto" and e.oracle != "graphs"      # which never stack, and fit the workers' device, not ours
    setup = replace(setup, stack=True) if asked and rounds and pays_to_stack(setup, e.local) else setup
    if getattr(e.algorithm, "hessians", False):
        draws = setup.task.draws(0, generator(e.seed, "local"), e.plan(0))
        try_hessian(oracle_for(setup), setup.task.initial(e.seed), draws, name_of(e.algorithm))
    return setup


def checkpoint_of(e: Experiment, folder: RunFolder) -> tuple[int, Snapshot] | None:
    """Return the newest good checkpoint of a run that an experiment is to continue.

    A run that ended before its first checkpoint has none and is begun anew: its lines are dropped.

    Raises:
        CheckpointError: if there are checkpoints and none is good.
        ConfigError: if the experiment is another one than the run's, naming what differs.
    """
    if not any(folder.checkpoints.glob("round-*")):
        folder.truncate(-1)
        shutil.rmtree(folder.states, ignore_errors=True)
        return None
    done, snapshot = Checkpoints(folder.checkpoints, e.checkpoint_keep).load()
    in_run, here = snapshot.meta["identity"], e.identity()
    for key in sorted({*in_run, *here}):
        if in_run.get(key) != here.get(key):
            raise ConfigError(key, here.get(key), f"{in_run.get(key)}, as in the run {folder.path}",
                              "Start a new run to change it.")
    if e.rounds < done:
        raise ConfigError("rounds", e.rounds, f">= {done}, the rounds that are done", "Start a new run for fewer.")
    return done, snapshot


def _rounds(e: Experiment, loop: Loop, workers: Workers, folder: RunFolder | None, trackers: Sequence[Tracker],
            config: dict[str, Any], start: tuple[int, Snapshot] | None) -> list[dict[str, Any]]:
    checkpoints = Checkpoints(folder.checkpoints, e.checkpoint_keep) if folder else None
    first, lines = 0, []
    if start and folder:
        first, snapshot = start
        loop.restore(snapshot.tensors, snapshot.meta["loop"])
        folder.truncate(first)
        lines = folder.metrics()
    for tracker in trackers:
        tracker.started(folder.path if folder else None, config)
    with closing(Evaluation(e)) as evaluation:
        told = Lines(lines, evaluation, folder, trackers)
        if not lines:
            told.add({"round": 0, "seconds": {}}, None, evaluation.start(loop.model()))
        for r in range(first, e.rounds):
            at("between", r)
            try:
                report = loop.round(r)
            except BaseException:
                told.tell_all()  # the rounds before are done
                _note(workers.events(), folder)
                raise
            _note(workers.events(), folder)
            done, evaluated = r + 1, None
            last = done == e.rounds
            if last or (e.evaluate_every and done % e.evaluate_every == 0):
                told.tell_all()
                evaluated = evaluation.start(loop.model(), final=last)
            told.add(_line(done, report), report, evaluated)
            if checkpoints and (last or (e.checkpoint_every and done % e.checkpoint_every == 0)):
                told.tell_all()  # a checkpoint stands for rounds whose lines are on disk
                _checkpoint(e, done, loop, workers, checkpoints)
            elif not checkpoints and done % TIDY == 0:
                workers.commit(loop.states(), [])   # states that others have replaced
    return lines


def _note(events: Sequence[Event], folder: RunFolder | None) -> None:
    """Say what happened to the workers, and write it down."""
    for event in events:
        details = "; ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "round"))
        where = f"round {event['round']}: " if "round" in event else ""
        log.warning("%s%s (%s)", where, event["event"], details)
        if folder:
            folder.append_event(event)


class Lines:
    """The lines of a run, told in the order of the rounds, each as soon as its evaluation is done.

    While an evaluation goes on beside the rounds, its line and those of later rounds wait. A line's
    seconds of ``evaluate`` are those that the rounds waited for, ``aside`` those beside them.
    """

    def __init__(self, told: list[dict[str, Any]], evaluation: Evaluation, folder: RunFolder | None,
                 trackers: Sequence[Tracker]) -> None:
        self.told, self.evaluation, self.folder, self.trackers = told, evaluation, folder, trackers
        self.waiting: deque[tuple[dict[str, Any], RoundReport | None, Future[Measured] | None]] = deque()

    def add(self, line: dict[str, Any], report: RoundReport | None, evaluated: Future[Measured] | None) -> None:
        """Take a line, and tell what can be told."""
        self.waiting.append((line, report, evaluated))
        while self.waiting and ((head := self.waiting[0][2]) is None or head.done()):
            self._tell_first()

    def tell_all(self) -> None:
        """Tell every line, waiting for the evaluation that goes on; raises what that raised."""
        while self.waiting:
            self._tell_first()

    def _tell_first(self) -> None:
        line, report, evaluated = self.waiting[0]
        line["seconds"]["evaluate"] = 0.0
        if evaluated is not None:
            began = perf_counter()
            measured = evaluated.result() if evaluated.done() else self.evaluation.wait(evaluated)
            line |= measured.metrics
            line["seconds"] |= ({"evaluate": perf_counter() - began, "aside": measured.seconds} if measured.aside
                                else {"evaluate": measured.seconds})
        self.waiting.popleft()
        self.told.append(line)
        if self.folder:
            self.folder.append_metrics(line)
            if report:
                accepted = [record.client for record in report.records]
                self.folder.append_ledger({"round": line["round"], "cohort": list(report.cohort),
                                           "accepted": accepted, "sha256": report.digest})
        for tracker in self.trackers:
            tracker.round(line)


def _checkpoint(e: Experiment, done: int, loop: Loop, workers: Workers, checkpoints: Checkpoints) -> None:
    """Save a checkpoint, the clients' states before it and the clean-up of old ones after it."""
    tensors, meta = loop.snapshot()
    states = loop.states()
    workers.commit(states)
    checkpoints.save(done, Snapshot(tensors, {"loop": meta, "states": states, "identity": e.identity()}))
    kept = [tuple(pair) for r in checkpoints.rounds() for pair in checkpoints.meta(r)["states"]]
    workers.commit(states, kept)


def _line(done: int, report: RoundReport) -> dict[str, Any]:
    records = report.records
    steps = sum(record.steps for record in records)
    return {"round": done, "clients": len(records),
            "train_loss": sum(record.loss * record.steps for record in records) / max(steps, 1),
            "bytes_down": report.bytes_down, "bytes_up": report.bytes_up, "seconds": dict(report.seconds),
            "simulated_seconds": report.simulated, **report.extra}


def _finished(e: Experiment, x: Tensor, lines: list[dict[str, Any]], folder: RunFolder | None) -> History:
    model = getattr(e.task, "model", None)
    if isinstance(model, nn.Module):
        load(model, x)
    history = History(lines, x, model, folder.path if folder else None)
    if folder:
        named: Mapping[str, Tensor] = e.task.named(x) if hasattr(e.task, "named") else {"x": x}
        save_model(folder.path, named, {"sha256": history.sha256, "rounds": e.rounds, "identity": e.identity()})
    return history


@contextmanager
def _callers_own() -> Iterator[None]:
    """Give the caller's random streams and number of threads back when the run is over."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)
