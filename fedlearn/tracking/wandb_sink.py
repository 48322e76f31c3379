"""Weights & Biases: the metrics of a run as a wandb run; the only importer of wandb, when a run starts.

The wandb run bears the id of the run folder, so a resumed run goes on in the same place. Its files lie in
the run folder; those of ``mode: offline`` are sent later by ``wandb sync``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, one_of

MODES = ("online", "offline", "disabled")


@dataclass(frozen=True)
class Wandb:
    """Send the metrics to a wandb project; ``mode`` is online, offline or disabled."""

    project: str = "fedlearn"
    mode: str = "offline"
    name: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError("mode", self.mode, one_of(MODES, self.mode))
        if not self.project:
            raise ConfigError("project", self.project, "the name of a wandb project")

    def tracker(self) -> WandbTracker:
        """Return the tracker that does it."""
        return WandbTracker(self)


class WandbTracker:
    """One wandb run, from ``started`` to ``finished``."""

    def __init__(self, settings: Wandb) -> None:
        self.settings = settings
        self.run: Any = None

    def started(self, folder: Path | None, config: Mapping[str, Any]) -> None:
        """Open the wandb run.

        Raises:
            ConfigError: if wandb is not installed, or does not let us in.
        """
        s = self.settings
        try:
            import wandb
        except ImportError:
            raise ConfigError("tracking.wandb", s.mode, "an installed wandb", "Install it: pip install "
                              "'fedlearn[wandb]', or choose tracking=none.") from None
        name = s.name or (f"{folder.parent.name}/{folder.name}" if folder else None)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self.run = wandb.init(
                project=s.project, mode=s.mode, name=name, group=s.group, config=dict(config),  # type: ignore
                dir=str(folder) if folder else None, id=folder.name if folder else None,
                resume="allow" if folder and s.mode == "online" else None,
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True))
        except (wandb.Error, OSError) as error:
            raise ConfigError("tracking.wandb.mode", s.mode, one_of(MODES), "wandb says: "
                              f"{' '.join(str(error).split())} (for online: `wandb login`).") from error

    def round(self, metrics: Mapping[str, Any]) -> None:
        """Log a round's metrics at its number; nested ones as ``seconds/work``."""
        if self.run is not None:
            self.run.log(_flat(metrics), step=int(metrics["round"]))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close the wandb run; more than once is fine."""
        if self.run is not None:
            self.run.summary.update(_flat(summary))
            self.run.finish()
            self.run = None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
