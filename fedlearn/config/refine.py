"""The norms of a finished run, put into the configuration of the run that refines its schedule.

So the new run, its folder and whoever resumes it no longer need the first one's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedlearn.errors import ConfigError

TARGET = "fedlearn.policies.refined.Refined"
FLAT = "fedlearn.policies.schedule.Constant"


def with_norms(cfg: Any) -> Any:
    """Return a configuration whose refined schedule, if it has one, holds the norms of the run that it names.

    Raises:
        ConfigError: if that run cannot be refined.
    """
    schedule = cfg.get("schedule")
    if schedule and schedule.get("_target_") == TARGET and schedule.get("run") and not schedule.get("norms"):
        schedule.norms = norms_of(str(schedule.run), str(schedule.get("column")), str(cfg.get("runs", "runs")))
    return cfg


def norms_of(run: str, column: str = "l2", runs: str = "runs") -> list[float]:
    """Return the norm of each round's mean upload in a finished run, found as ``fedlearn show`` finds it.

    Raises:
        ConfigError: if there is no such run, it did not end or measure them, or its step size changed.
    """
    import yaml

    from fedlearn.tracking.run_folder import RunFolder

    folder = RunFolder.open(run, Path(runs))
    lines = [line for line in folder.metrics() if line["round"] > 0]
    if not lines or any(f"update_{column}" not in line for line in lines):
        raise ConfigError("schedule.run", run, "a run with modifiers=[update_norm]",
                          f"Its metrics have no update_{column}.")
    if folder.config.exists():
        config = yaml.safe_load(folder.config_text())
        made, rounds = config.get("schedule") or {}, config.get("rounds")
        if made.get("_target_") != FLAT or made.get("warmup"):
            raise ConfigError("schedule.run", run, "a run with schedule=constant schedule.warmup=0",
                              "The norms of its uploads have its own schedule in them.")
        if len(lines) != rounds:
            raise ConfigError("schedule.run", run, f"a finished run, of {rounds} rounds",
                              f"It has {len(lines)}; `fedlearn resume` continues it.")
    return [float(line[f"update_{column}"]) for line in lines]
