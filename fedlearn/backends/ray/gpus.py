"""Who of the actors works on a GPU: Ray gives each of these one of its own, on a machine that has one left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...contracts import Task
from ...errors import ConfigError
from ..device import KEY, check_devices
from .machines import Machine


def check_kinds(devices: Any, workers: int) -> None:
    """Check which kinds of devices are asked for: one word for all actors, or a list with an entry for each.

    Raises:
        ConfigError: naming backend.devices.
    """
    check_devices(devices, "cpu|cuda", "cpu or cuda", "actor", "As in [cuda,cuda,cpu]; which GPU it is Ray decides.")
    if not isinstance(devices, str) and len(devices) != workers:
        raise ConfigError(KEY, list(devices), f"a list with {workers} entries, one for each of backend.workers")


def kinds(devices: str | Sequence[str], task: Task, gpus: int, places: Sequence[Machine | None]) -> list[str]:
    """Return "cpu" or "cuda" for every actor, of which one goes to each place; the cluster has so many GPUs.

    Raises:
        ConfigError: if there are fewer than were asked for, or the task cannot go to one.
    """
    able = hasattr(task, "to")
    if devices == "auto":
        left = Counter({m.node: m.gpus for m in places if m is not None})
        found = []
        for i, there in enumerate(places):
            has = able and (i < gpus if there is None else left[there.node] > 0)
            if has and there is not None:
                left[there.node] -= 1
            found.append("cuda" if has else "cpu")
        return found
    asked = [devices] * len(places) if isinstance(devices, str) else list(devices)
    many = asked.count("cuda")
    if many and not (able and many <= gpus):
        why = (f"The cluster has {gpus} GPU{'s' * (gpus != 1)} for {many} actors." if able else
               f"{type(task).__name__} has no method to(device).")
        raise ConfigError(KEY, devices if isinstance(devices, str) else asked, "auto or cpu here", why)
    return asked
