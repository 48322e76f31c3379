"""What trackers beside the run folder share: the lines told before they began, and flat names of nested metrics."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from .run_folder import RunFolder


def told_before(folder: Path | None) -> list[tuple[dict[str, Any], float | None]]:
    """Return the lines of a run's metrics.jsonl, each with the time of its round in seconds since 1970.

    A run that goes on has been cut back to its checkpoint by now: a tracker that begins with these lines and then
    hears the others has every round once, whatever became of an earlier tracker. A line of which ledger.jsonl has no
    time, as that of round 0, takes that of the next (None: there is none).
    """
    if folder is None:
        return []
    run = RunFolder(folder)
    lines = run.metrics()
    ended = {line["round"]: _seconds(line.get("time")) for line in run.ledger()} if lines else {}
    told: list[tuple[dict[str, Any], float | None]] = []
    time = None
    for line in reversed(lines):
        time = ended.get(line["round"]) or time
        told.append((line, time))
    return told[::-1]


def flat(tree: Mapping[str, Any], between: str = "/") -> dict[str, Any]:
    """Return a nested mapping as a flat one: ``{"seconds": {"work": 1}}`` as ``{"seconds/work": 1}``."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= {f"{key}{between}{name}": leaf for name, leaf in flat(value, between).items()}
        else:
            leaves[str(key)] = value
    return leaves


def _seconds(time: Any) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except (TypeError, ValueError):
        return None
