"""From raw measurements to medians, spread and ratios with their uncertainty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """What is known of one contestant in one race; times in seconds, memory (see ``machine.memory_mb``) in MB.

    ``ratio`` is its median time over the reference's, (estimate, low, high) with a 95 % bootstrap
    interval over rounds; ``difference`` the largest of its final weights from bare PyTorch's.
    """

    name: str
    median: float
    quartiles: tuple[float, float]
    rounds: int
    noisy: int
    ratio: tuple[float, float, float] | None
    accuracy: float | None
    difference: float | None
    memory: float | None
    mapped: float | None
    start: float | None


def rows(records: Iterable[Mapping[str, Any]], reference: str) -> list[Row]:
    """Return one row per contestant that was timed, in the order of their first measurement."""
    records = list(records)
    times: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "round":
            times.setdefault(record["name"], {})[record["round"]] = record["seconds"]
    return [_row(name, times, records, reference) for name in times]


def _row(name: str, times: Mapping[str, Mapping[int, float]], records: list[Mapping[str, Any]], reference: str) -> Row:
    mine = [record for record in records if record.get("name") == name]
    seconds = np.array(list(times[name].values()))
    final: Mapping[str, Any] = next((r for r in mine if r["kind"] == "final"), {})
    ready: Mapping[str, Any] = next((r for r in mine if r["kind"] == "ready"), {})
    low, high = np.quantile(seconds, (0.25, 0.75))
    return Row(name, float(np.median(seconds)), (float(low), float(high)), len(seconds),
               sum(r["noisy"] for r in mine if r["kind"] == "round"), ratio(times[name], times.get(reference)),
               final.get("accuracy"), final.get("difference"), final.get("memory_mb"), final.get("mapped_mb"),
               ready.get("seconds"))


def ratio(mine: Mapping[int, float], theirs: Mapping[int, float] | None) -> tuple[float, float, float] | None:
    """Return the ratio of the medians and its 95 % interval, resampling the rounds that both ran."""
    common = sorted(set(mine) & set(theirs or ()))
    if not theirs or not common:
        return None
    a, b = (np.array([times[r] for r in common]) for times in (mine, theirs))
    draws = np.random.default_rng(0).integers(len(common), size=(RESAMPLES, len(common)))
    resampled = np.median(a[draws], axis=1) / np.median(b[draws], axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(np.median(a) / np.median(b)), float(low), float(high)


def number(x: float) -> str:
    """Return a number with three digits that count."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
