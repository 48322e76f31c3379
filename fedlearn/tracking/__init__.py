"""What is said about a run while it goes on and afterwards: the run folder, progress, wandb, TensorBoard, reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Whoever wants to hear about a run; called by the coordinator only, in this order."""

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Hear that the run begins, or goes on after ``resume``; ``folder`` is None if none is kept."""
        ...

    def round(self, metrics: Mapping[str, Any]) -> None:
        """Hear one line of metrics.jsonl; round r is the state after r rounds.

        Lines come in order; with evaluation aside, those that wait for one come after a later round.
        """
        ...

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Hear that the run came to its end, with the last metrics and the SHA-256 of the model."""
        ...


def human_bytes(n: float) -> str:
    """Return a count of bytes in words: ``"12.3 MB"`` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" or n >= 99.95 else f"{n:.1f} {unit}"
        n /= 1000
    raise AssertionError


def human_seconds(s: float) -> str:
    """Return a duration as a clock shows it: ``"1:02"`` or ``"1:00:02"``."""
    minutes, seconds = divmod(int(s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
