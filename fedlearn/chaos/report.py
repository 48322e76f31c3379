"""What a rehearsal prints and writes down: a line for every trial, a table with one for every kind, JSON, Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..faults import Fault
from .processes import countable
from .trial import WAITED, Trial
from .verdict import UNNOTICED, Verdict, false_alarms, faults_of, first_difference, rows, verdicts

COLUMNS = ("fault", "injected", "not reached", "noticed", "survived", "resumed", "hash equal", "recovery median",
           "recovery max")


@dataclass
class Rehearsal:
    """An undisturbed run, and the trials so far.

    ``limits`` are overrides that those have whose faults only show when a limit is over.
    """

    title: str
    seed: int
    undisturbed: Trial
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0
    limits: tuple[str, ...] = ()

    @property
    def judged(self) -> list[Verdict]:
        """The verdicts on all faults."""
        return [verdict for trial in self.trials for verdict in verdicts(trial, self.undisturbed.sha256)]

    @property
    def injected(self) -> int:
        """How many faults fired."""
        return sum(len(trial.fired) for trial in self.trials)

    @property
    def failed(self) -> list[Trial]:
        """The trials that are not as they should be."""
        return [trial for trial in self.trials if faults_of(trial, self.undisturbed.sha256)]

    @property
    def good(self) -> bool:
        """Whether something was injected, and everything was survived with the undisturbed hash and no orphans."""
        return self.injected > 0 and not self.failed and all(v.survived and v.equal for v in self.judged if v.reached)


def words(fault: Fault) -> str:
    """Say what a fault is."""
    return f"{fault.kind} at {fault.point} {fault.round}"


def line_of(trial: Trial, undisturbed: Trial) -> str:
    """Return the line that tells of a trial while the rehearsal goes on."""
    wrong = faults_of(trial, undisturbed.sha256)
    late = [words(fault) for i, fault in enumerate(trial.faults) if i not in trial.fired]
    resumed, alarms = len(trial.attempts) - 1, len(false_alarms(trial))
    parts = [f"{trial.seconds:5.1f} s", "hash equal" if not wrong else "FAILED: " + "; ".join(wrong),
             f"resumed {'once' if resumed == 1 else f'{resumed} times'}" * bool(resumed),
             f"{alarms} worker{'s' * (alarms != 1)} lost without a fault" * bool(alarms),
             f"not reached: {', '.join(late)}" * bool(late)]
    return f"{trial.name}  " + ", ".join(filter(None, parts)) + "  [" + ", ".join(map(words, trial.faults)) + "]"


def table(judged: Sequence[Verdict]) -> str:
    """Return a Markdown table with one line for every kind of fault."""
    lines = [list(COLUMNS)]
    for row in rows(judged):
        noticed = "-" if row.noticed is None else str(row.noticed)
        took = [f"{s:.1f} s" for s in row.recovery] if row.recovery else ["-", "-"]
        equal = "yes" if row.equal == row.injected else f"{row.equal} of {row.injected}"
        lines.append([row.kind, str(row.injected), str(row.not_reached), noticed, str(row.survived), str(row.resumed),
                      equal if row.injected else "-", *took])
    wide = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    text = ["| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                              for i, (cell, w) in enumerate(zip(line, wide, strict=True))) + " |" for line in lines]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(wide)) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def totals(rehearsals: Sequence[Rehearsal]) -> str:
    """Return the sentence that sums up."""
    judged = [v for r in rehearsals for v in r.judged if v.reached]
    trials = [t for r in rehearsals for t in r.trials]
    equal = sum(v.equal for v in judged)
    same = "every hash equal" if equal == len(judged) else f"{equal} of them in runs with an equal hash"
    same = same if judged else "no hash to compare"
    orphans = sum(len(t.orphans) for t in trials)
    plural = "" if orphans == 1 else "es"
    outlived = f"{orphans} orphan process{plural}" if countable() else "orphan processes cannot be counted here"
    strays = sum(len(t.strays) for t in trials)
    minutes, seconds = divmod(round(sum(r.seconds for r in rehearsals)), 60)
    return (f"{len(judged)} fault{'s' * (len(judged) != 1)} in {len(trials)} run{'s' * (len(trials) != 1)}, "
            f"{f'{minutes} min ' * (minutes > 0)}{seconds} s: {sum(v.survived for v in judged)} survived, {same}, "
            f"{outlived}, {strays} temporary file{'s' * (strays != 1)} left by killed processes")


def limits_of(rehearsal: Rehearsal) -> str:
    """Say which limits some trials had, if any: they bound the recovery from what only shows when they are over."""
    met = sorted({f.kind for t in rehearsal.trials for f in t.faults if f.kind in WAITED})
    return f"\nruns with {', '.join(met)} had {' '.join(rehearsal.limits)}" if met and rehearsal.limits else ""


def failures(rehearsal: Rehearsal) -> list[str]:
    """Return what failed and where to look, by trial."""
    found = []
    for trial in rehearsal.failed:
        differs = first_difference(trial, rehearsal.undisturbed)
        since = f"; the server's state differs from round {differs} on" if differs is not None else ""
        injected = ", ".join(words(trial.faults[i]) for i in sorted(trial.fired)) or "nothing"
        found.append(f"{trial.name}: {'; '.join(faults_of(trial, rehearsal.undisturbed.sha256))}{since}. Injected: "
                     f"{injected}. Kept in {trial.home}")
    return found


def write(rehearsal: Rehearsal, folder: Path) -> None:
    """Write chaos.json and chaos.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chaos.json").write_text(json.dumps(as_json(rehearsal), indent=1) + "\n", encoding="utf-8")
    lines = [f"# {rehearsal.title}", "", totals([rehearsal]) + "." + limits_of(rehearsal), ""]
    lines += [table(rehearsal.judged), ""]
    lines += [f"- {text}" for text in failures(rehearsal)] + [""] * bool(rehearsal.failed)
    lines += ["## Runs", "", f"undisturbed: {rehearsal.undisturbed.seconds:.1f} s, sha256 "
              f"{rehearsal.undisturbed.sha256}", ""]
    for trial in rehearsal.trials:
        each = map(_told, verdicts(trial, rehearsal.undisturbed.sha256))
        lines += ["```", line_of(trial, rehearsal.undisturbed), *each, "```", ""]
    (folder / "chaos.md").write_text("\n".join(lines), encoding="utf-8")


def as_json(rehearsal: Rehearsal) -> dict[str, Any]:
    """Return all that is known of a rehearsal, as JSON can hold it."""
    def told(trial: Trial) -> dict[str, Any]:
        return {"name": trial.name, "seconds": round(trial.seconds, 3), "sha256": trial.sha256,
                "attempts": [asdict(a) | {"said": a.last_words} for a in trial.attempts],
                "wrong": faults_of(trial, rehearsal.undisturbed.sha256), "orphans": list(trial.orphans.values()),
                "strays": trial.strays, "events": trial.events, "false_alarms": false_alarms(trial),
                "faults": [asdict(v) for v in verdicts(trial, rehearsal.undisturbed.sha256)]}

    return {"title": rehearsal.title, "seed": rehearsal.seed, "seconds": round(rehearsal.seconds, 3),
            "good": rehearsal.good, "undisturbed": told(rehearsal.undisturbed),
            "kinds": [asdict(row) for row in rows(rehearsal.judged)], "trials": [told(t) for t in rehearsal.trials]}


def _told(verdict: Verdict) -> str:
    if not verdict.reached:
        return f"  {words(verdict.fault)}: not reached"
    took = "never recovered" if verdict.recovery is None else f"recovered in {verdict.recovery:.2f} s"
    nobody = "nothing to notice" if verdict.fault.kind in UNNOTICED else "not noticed"
    return f"  {words(verdict.fault)}: {verdict.noticed or nobody}, {took}" + ", by resuming" * verdict.resumed
