"""What a run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, one_of
from ..vectors import digest
from .profile import Profile


@dataclass
class History:
    """What a run leaves behind.

    ``metrics`` is the list of the lines of metrics.jsonl; ``x`` the final model as a vector [P] and
    ``sha256`` its digest; ``model`` the module with these weights where the task has one;
    ``folder`` the run's folder, if it has one, and ``profile`` where the time of the rounds went, if that
    was asked for.
    """

    metrics: list[dict[str, Any]]
    x: Tensor
    model: nn.Module | None = None
    folder: Path | None = None
    profile: Profile | None = None
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        self.sha256 = digest(self.x)

    def final(self, name: str) -> float:
        """Return the last value of a metric, e.g. ``test_accuracy``.

        Raises:
            ConfigError: if no round has it, naming those that there are.
        """
        for line in reversed(self.metrics):
            if name in line:
                return line[name]
        raise ConfigError("metric", name, one_of({key for line in self.metrics for key in line}, name))
