"""The lines of a run, as they are told to its folder and its trackers, and the notes between them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from time import perf_counter
from typing import Any

from ..experiment import RoundReport
from ..tracking import Tracker
from ..tracking.run_folder import RunFolder, now
from ..work import Event
from .evaluation import Evaluation, Measured
from .stopping import GivenUp, Stopping

log = logging.getLogger("fedlearn")


def note(events: Sequence[Event], folder: RunFolder | None) -> None:
    """Say what happened to the workers, and write it down."""
    for event in events:
        details = "; ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "round"))
        where = f"round {event['round']}: " if "round" in event else ""
        log.warning("%s%s%s", where, event["event"], f" ({details})" if details else "")
        if folder:
            folder.append_event(event)


class Lines:
    """The lines of a run, told in the order of the rounds, each as soon as its evaluation is done.

    While an evaluation goes on beside the rounds, its line and those of later rounds wait. A line's
    seconds of ``evaluate`` are those that the rounds waited for, ``aside`` those beside them. An evaluation
    that a stop gives up leaves a line without its metrics.
    """

    def __init__(self, told: list[dict[str, Any]], evaluation: Evaluation, folder: RunFolder | None,
                 trackers: Sequence[Tracker], stopping: Stopping) -> None:
        self.told, self.evaluation, self.folder, self.trackers = told, evaluation, folder, trackers
        self.stopping = stopping
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
            with suppress(GivenUp):
                measured = (evaluated.result() if evaluated.done() else
                            self.stopping.heed(self.evaluation.wait, evaluated))
                line |= measured.metrics
                line["seconds"] |= ({"evaluate": perf_counter() - began, "aside": measured.seconds} if measured.aside
                                    else {"evaluate": measured.seconds})
        self.waiting.popleft()
        self.told.append(line)
        if self.folder:
            self.folder.append_metrics(line)
            if report:
                accepted = [record.client for record in report.records]
                self.folder.append_ledger({"round": line["round"], "cohort": list(report.cohort), "accepted": accepted,
                                           "sha256": report.digest, "time": now()})
        for tracker in self.trackers:
            tracker.round(line)
