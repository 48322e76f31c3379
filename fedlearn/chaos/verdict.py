"""What became of each fault: whether it fired, who noticed it, and how long it was until the next round was done."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..faults import COORDINATOR, Fault
from .trial import Attempt, Trial, seconds_of

UNNOTICED = {"slow"}            # kinds that nobody should take for a failure
FULL = (5, 6)                   # exit codes of a run that could not write
LOST = re.compile("lost")       # events of workers that are gone


@dataclass(frozen=True)
class Verdict:
    """What became of one fault.

    ``noticed`` says by what; ``recovery`` is the seconds until the round in which it fired, or the one after the
    checkpoint at which it did, was committed. ``survived`` means that this came to be, ``resumed`` that somebody had to
    resume the run for it, ``equal`` that its trial ended in the undisturbed hash.
    """

    fault: Fault
    reached: bool
    noticed: str = ""
    survived: bool = False
    resumed: bool = False
    equal: bool = False
    recovery: float | None = None


def verdicts(trial: Trial, sha256: str) -> list[Verdict]:
    """Judge every fault of a trial; ``sha256`` is the undisturbed run's."""
    return _judge(trial, sha256)[0]


def false_alarms(trial: Trial) -> list[dict[str, Any]]:
    """Return the events of workers that were lost without a fault."""
    return [event for event in _judge(trial, "")[1] if LOST.search(event["event"])]


def _judge(trial: Trial, sha256: str) -> tuple[list[Verdict], list[dict[str, Any]]]:
    """Return the verdicts, and the events that belong to none."""
    equal, found = trial.ended and trial.sha256 == sha256, []
    unmatched = sorted(trial.events, key=lambda event: event["time"])
    for i, fault in sorted(enumerate(trial.faults), key=lambda item: trial.fired.get(item[0], (0.0, 0))):
        if i not in trial.fired:
            found.append(Verdict(fault, False))
            continue
        when, pid = trial.fired[i]
        during = next((a for a in reversed(trial.attempts) if a.began <= when), trial.attempts[0])
        again = trial.recovered(fault, when)
        event = None if fault.kind in UNNOTICED else matching(unmatched, fault, when, pid, again)
        if event is not None:
            unmatched.remove(event)
        noticed = event["event"] if event else exit_of(during, fault)
        resumed = again is not None and again > during.ended and during is not trial.attempts[-1]
        found.append(Verdict(fault, True, noticed, again is not None, resumed, equal,
                             None if again is None else again - when))
    return found, unmatched


def matching(events: Sequence[dict[str, Any]], fault: Fault, when: float, pid: int,
             until: float | None) -> dict[str, Any] | None:
    """Return the event that tells of a fault: one that names its process, else the first after it."""
    later = [event for event in events if seconds_of(event["time"]) >= when - 0.01
             and (until is None or seconds_of(event["time"]) <= until + 1)]
    if fault.kind == "full":
        return next((event for event in later if "not written" in event["event"]), None)
    if fault.point in COORDINATOR:
        return None
    later = [event for event in later if LOST.search(event["event"])]
    named = [event for event in later if re.search(rf"\b{pid}\b", " ".join(map(str, event.values())))]
    return next(iter(named or later), None)


def exit_of(attempt: Attempt, fault: Fault) -> str:
    """Return how a command ended if that shows the fault, else nothing."""
    if fault.point in COORDINATOR and fault.kind == "kill":
        return "exit by SIGKILL" if attempt.code == -signal.SIGKILL else ""
    if fault.kind == "full" and "cannot be written" in attempt.said:
        return "a warning"
    shows = FULL if fault.point in COORDINATOR else (4,)
    return f"exit code {attempt.code}" if attempt.code in shows and fault.kind not in UNNOTICED else ""


def first_difference(trial: Trial, undisturbed: Trial) -> int | None:
    """Return the first round whose server state is another than in the undisturbed run, if there is one."""
    return next((r for r, digest in sorted(trial.digests.items()) if undisturbed.digests.get(r) != digest), None)


def faults_of(trial: Trial, sha256: str) -> list[str]:
    """Return in words what is wrong with a trial; nothing if it is as it should be."""
    wrong = []
    if not trial.ended:
        last = trial.attempts[-1]
        how = "did not end in time" if last.code is None else f"ended with exit code {last.code}"
        wrong.append(f"it {how} after {len(trial.attempts)} attempts: {last.last_words or 'it said nothing'}")
    elif trial.sha256 != sha256:
        wrong.append(f"it ended in sha256 {trial.sha256[:16]}, the undisturbed run in {sha256[:16]}")
    if trial.orphans:
        wrong.append("processes outlived it: " + "; ".join(f"{p} {command}" for p, command in trial.orphans.items()))
    return wrong


@dataclass(frozen=True)
class Row:
    """All faults of one kind, counted."""

    kind: str
    injected: int
    not_reached: int
    noticed: int | None     # None: nobody should
    survived: int
    resumed: int
    equal: int
    recovery: tuple[float, float] | None    # median and greatest, seconds


def rows(judged: Sequence[Verdict]) -> list[Row]:
    """Count verdicts by kind, in alphabetical order."""
    found = []
    for kind in sorted({v.fault.kind for v in judged}):
        every = [v for v in judged if v.fault.kind == kind]
        fired = [v for v in every if v.reached]
        took = [v.recovery for v in fired if v.recovery is not None]
        found.append(Row(kind, len(fired), len(every) - len(fired),
                         None if kind in UNNOTICED else sum(bool(v.noticed) for v in fired),
                         sum(v.survived for v in fired), sum(v.resumed for v in fired), sum(v.equal for v in fired),
                         (median(took), max(took)) if took else None))
    return found
