"""The composition root: it opens the workers, turns the rounds, and keeps the run's folder."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoints, Snapshot, save_model
from ..combinations import name_of
from ..errors import ConfigError, FedlearnError, Stopped
from ..experiment import Experiment, Loop, RoundReport
from ..faults import at, lead
from ..oracles.trial import try_hessian
from ..seeds import generator
from ..tracking import Tracker
from ..tracking.progress import Progress
from ..tracking.run_folder import RunFolder
from ..vectors import load
from ..work import Setup, Workers
from ..worker.stacking import oracle_for, pays_to_stack
from .evaluation import Evaluation
from .history import History
from .keeping import Keeping, go_back, how_to_go_on
from .lines import Lines, note
from .profile import Profile
from .resources import check_disk, check_memory
from .restore import restore, usable
from .stopping import GRACE, GivenUp, Stopping, heeding, interruptible

log = logging.getLogger("fedlearn")

TIDY = 10   # rounds after which a run without checkpoints lets go of client states that nobody needs


def execute(experiment: Experiment, folder: RunFolder | None = None, trackers: Sequence[Tracker] = (),
            progress: str = "none", title: str = "", config: dict[str, Any] | None = None,
            start: tuple[int, Snapshot] | None = None, profile: Profile | None = None, grace: float = GRACE,
            check_resources: bool = True) -> History:
    """Run an experiment to its last round and return its history.

    With a ``folder`` every round is recorded there and checkpoints are kept; ``start`` is what
    ``checkpoint_of`` found there, to continue from; a ``profile`` measures the rounds, and is written to
    the folder, too. On a torchrun rank other than 0 this serves rank 0 and returns the same history,
    without a profile. A signal stops the run as ``stopping`` says; the round under way has ``grace`` seconds to end.
    With ``check_resources`` a run that memory or disk cannot hold is refused before it starts.

    Raises:
        Stopped: if a signal stopped the run.
        ResourceError: if memory or disk does not suffice.
        FedlearnError: with one line that says what is wrong and what to do.
    """
    e = experiment
    setup = setup_of(e, folder.states.resolve() if folder else None)
    if check_resources:
        check_memory(e, setup)
        if folder:
            check_disk(e, folder)
    with _callers_own(), Stopping(grace) as stopping:
        try:
            with interruptible():
                return _execute(e, setup, stopping, folder, trackers, progress, title, config or {}, start, profile)
        except GivenUp:     # outside of the rounds, where nothing is under way that a checkpoint could keep
            raise Stopped(f"stopped by {stopping.reason()} outside of the rounds; "
                          f"{how_to_go_on(folder)}", code=stopping.code()) from None


def _execute(e: Experiment, setup: Setup, stopping: Stopping, folder: RunFolder | None, trackers: Sequence[Tracker],
             progress: str, title: str, config: dict[str, Any], start: tuple[int, Snapshot] | None,
             profile: Profile | None) -> History:
    workers = e.backend.open(setup)
    try:
        if workers.rank > 0:
            final = workers.serve()
            history = _history(e, final["x"], json.loads(final["metrics"].numpy().tobytes()), None)
            if "stopped" in final:
                raise Stopped("rank 0 stopped the run", history, int(final["stopped"]))
            return history
        own = getattr(workers, "worker", None)      # its task may lie on another device than ours
        oracle = own.oracle if own else oracle_for(setup)
        log.info("work runs on %s; gradients by %s%s", e.backend.describe(), oracle.describe(),
                 ", clients stacked" if setup.stack else "")
        if e.evaluate_samples is not None:
            log.info("evaluations stand on %d test samples, the last one on all of them", e.evaluate_samples)
        stopping.listen()   # a backend may have set handlers of its own
        loop = e.protocol.start(e, heeding(workers, stopping))
        with Progress(progress, e.rounds, title) as bar:
            stopping.tell = bar.say
            everybody: list[Tracker] = [*trackers, bar]
            with profile.watch(e, loop, workers, everybody) if profile else nullcontext(), lead(e.faults):
                lines = _rounds(e, loop, workers, folder, everybody, config, start, stopping)
            history = _history(e, loop.model().clone(), lines, folder)
            if stopping.ended is None and folder:
                _save(e, history, folder)
            if profile and folder:
                profile.write(folder.path / "profile.json")
            history.profile = profile
            for tracker in everybody:
                tracker.finished({"sha256": history.sha256, **lines[-1]})
        text = torch.frombuffer(bytearray(json.dumps(lines).encode()), dtype=torch.uint8)
        final = {"x": history.x, "metrics": text}
        if stopping.ended is None:
            workers.close(final)
            return history
        workers.close(final | {"stopped": torch.tensor([stopping.code()])})
        raise Stopped(f"stopped by {stopping.reason()} after {stopping.ended} of {e.rounds} rounds; "
                      f"{how_to_go_on(folder)}", history, stopping.code())
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

    One is good if it is intact, and so are the clients' states that it needs. A run that ended before its first
    checkpoint has none and is begun anew: its lines are dropped.

    Raises:
        CheckpointError: if there are checkpoints and none is good.
        ConfigError: if the experiment is another one than the run's, naming what differs.
    """
    if not any(folder.checkpoints.glob("round-*")):
        folder.truncate(-1)
        shutil.rmtree(folder.states, ignore_errors=True)
        return None
    done, snapshot = Checkpoints(folder.checkpoints, e.checkpoint_keep).load(usable=usable(e, folder.states))
    in_run, here = snapshot.meta["identity"], e.identity()
    for key in sorted({*in_run, *here}):
        if in_run.get(key) != here.get(key):
            raise ConfigError(key, here.get(key), f"{in_run.get(key)}, as in the run {folder.path}",
                              "Start a new run to change it.")
    if e.rounds < done:
        raise ConfigError("rounds", e.rounds, f">= {done}, the rounds that are done", "Start a new run for fewer.")
    return done, snapshot


def _rounds(e: Experiment, loop: Loop, workers: Workers, folder: RunFolder | None, trackers: Sequence[Tracker],
            config: dict[str, Any], start: tuple[int, Snapshot] | None, stopping: Stopping) -> list[dict[str, Any]]:
    first, lines = 0, []
    if start and folder:
        first, snapshot = start
        restore(loop, first, snapshot)
        folder.truncate(first)
        lines = folder.metrics()
        folder.append_event({"event": "resumed", "round": first, "backend": e.backend.describe()})
    keeping = Keeping(e, loop, workers, folder, first if start else None) if folder else None
    for tracker in trackers:
        tracker.started(folder.path if folder else None, config)
    with closing(Evaluation(e)) as evaluation:
        told = Lines(lines, evaluation, folder, trackers, stopping)
        if not lines:
            told.add({"round": 0, "seconds": {}}, None, evaluation.start(loop.model()))
        for r in range(first, e.rounds):
            done, evaluated = r + 1, None
            last = done == e.rounds
            if stopping.asked is not None:
                stopping.ended = r
                break
            stopping.begin(done)
            try:
                at("between", r)
                report = loop.round(r)
            except GivenUp:
                told.tell_all()
                note(workers.events(), folder)
                go_back(r, loop, lines, keeping, stopping)
                break
            except BaseException:
                told.tell_all()  # the rounds before are done
                note(workers.events(), folder)
                raise
            note([*workers.events(), *report.events(done)], folder)
            if last or (e.evaluate_every and done % e.evaluate_every == 0):
                told.tell_all()
                with suppress(GivenUp):     # but for the last one, which the run's result includes
                    evaluated = (evaluation.start(loop.model(), final=True) if last else
                                 stopping.heed(evaluation.start, loop.model()))
            told.add(_line(done, report), report, evaluated)
            if keeping and (last or (e.checkpoint_every and done % e.checkpoint_every == 0)):
                told.tell_all()  # a checkpoint stands for rounds whose lines are on disk
                keeping.save(done, must=last)
            elif not keeping and done % TIDY == 0:
                workers.commit(loop.states(), [])   # states that others have replaced
        told.tell_all()
        if stopping.ended is not None and keeping:
            keeping.save(stopping.ended, must=True)
        stopping.round = None
    if stopping.ended is not None and keeping:
        keeping.folder.append_event({"event": "stopped", "round": stopping.ended, "by": stopping.reason(),
                                     "checkpoint": keeping.newest})
    elif stopping.ended is None:
        _check_not_all_void(lines)
    return lines


def _line(done: int, report: RoundReport) -> dict[str, Any]:
    records = report.records
    steps = sum(record.steps for record in records)
    loss = {"train_loss": sum(record.loss * record.steps for record in records) / max(steps, 1)} if records else {}
    left_out = {name: len(of) for name, of in (("refused", report.refused), ("late", report.late)) if of}
    return {"round": done, "clients": len(records), **loss, **left_out,
            "bytes_down": report.bytes_down, "bytes_up": report.bytes_up, "seconds": dict(report.seconds),
            "simulated_seconds": report.simulated, **report.extra}


def _check_not_all_void(lines: Sequence[Mapping[str, Any]]) -> None:
    """Check that a run to the last round did anything.

    Raises:
        FedlearnError: if every round was void.
    """
    rounds = lines[1:]
    if rounds and not any(line["clients"] for line in rounds):
        refused, late = (sum(line.get(name, 0) for line in rounds) for name in ("refused", "late"))
        raise FedlearnError(f"all {len(rounds)} rounds were void, the model is the initial one: {refused} updates were "
                            f"refused and {late} replies late; look at the ledger's events, lower participation.least "
                            "or raise participation.deadline")


def _history(e: Experiment, x: Tensor, lines: list[dict[str, Any]], folder: RunFolder | None) -> History:
    model = getattr(e.task, "model", None)
    if isinstance(model, nn.Module):
        load(model, x)
    return History(lines, x, model, folder.path if folder else None)


def _save(e: Experiment, history: History, folder: RunFolder) -> None:
    x = history.x
    named: Mapping[str, Tensor] = e.task.named(x) if hasattr(e.task, "named") else {"x": x}
    save_model(folder.path, named, {"sha256": history.sha256, "rounds": e.rounds, "identity": e.identity()})


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
