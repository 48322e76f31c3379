"""The scalar part of run.yaml: what belongs to a run as a whole, with the ranges that are allowed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from fedlearn.errors import ConfigError, in_range, one_of
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.participation import Participation
from fedlearn.tracking.run_folder import LATEST, NAME

REDUCE = ("exact", "fast")
DTYPES = ("float32", "float64")
PRECISIONS = ("float32", "bf16")
ON_BAD_UPDATE = ("stop", "refuse", "drop")
PROGRESS = ("auto", "bar", "plain", "none")


@dataclass(frozen=True)
class Evaluate:
    """Rounds between evaluations of the model (0: at the end only), and how all but the last are made.

    ``samples`` is how many test samples they stand on (None: all), ``aside`` whether they run in another
    thread while the next round works.
    """

    every: int = 1
    samples: int | None = None
    aside: bool = False

    def __post_init__(self) -> None:
        in_range("every", self.every, least=0)
        if self.samples is not None:
            in_range("samples", self.samples, least=1)


@dataclass(frozen=True)
class Checkpoint:
    """Rounds between checkpoints (0: at the end only), of which the last ``keep`` stay."""

    every: int = 10
    keep: int = 3

    def __post_init__(self) -> None:
        in_range("every", self.every, least=0)
        in_range("keep", self.keep, least=1)


@dataclass(frozen=True)
class Stop:
    """Seconds that the round under way has to end when SIGTERM or SIGUSR1 stops the run."""

    grace: float = 20.0

    def __post_init__(self) -> None:
        in_range("grace", self.grace, least=0, most=10**6)


@dataclass(frozen=True)
class Local(LocalWork):
    """What clients do in a round, and the optimiser that they do it with (None: the algorithm's own step)."""

    optimizer: str | None = None
    options: dict[str, Any] | None = None
    keep: str = "reset"

    def __post_init__(self) -> None:
        LocalWork.__post_init__(self)
        _needs_name("local", self.optimizer, options=self.options, keep=None if self.keep == "reset" else self.keep)

    @property
    def work(self) -> LocalWork:
        """What of it is work."""
        return LocalWork(**{f.name: getattr(self, f.name) for f in fields(LocalWork)})


@dataclass(frozen=True)
class Server:
    """The optimiser of the server (None: the algorithm's own step), its step size and the options of its class."""

    optimizer: str | None = None
    lr: float | None = None
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _needs_name("server", self.optimizer, lr=self.lr, options=self.options)


@dataclass(frozen=True)
class RunSettings:
    """Everything in run.yaml that is not a group; the comments there explain each key."""

    name: str | None = None
    seed: int = 0
    rounds: int = 50
    clients: int | None = 20
    cohort: int | None = 10
    min_samples: int = 10
    local: Local = field(default_factory=Local)
    server: Server = field(default_factory=Server)
    participation: Participation = field(default_factory=Participation)
    on_bad_update: str = "stop"
    max_update_norm: float | None = None
    reduce: str = "exact"
    oracle: str = "auto"
    precision: str = "float32"
    stack: bool | str = "auto"
    state_memory: int = 1024
    dtype: str = "float32"
    evaluate: Evaluate = field(default_factory=Evaluate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    stop: Stop = field(default_factory=Stop)
    launch: str | None = None
    check_resources: bool = True
    runs: str = "runs"
    progress: str = "auto"
    profile: bool = False
    faults: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        in_range("seed", self.seed, least=0)
        in_range("rounds", self.rounds, least=1)
        in_range("min_samples", self.min_samples, least=1)
        in_range("state_memory", self.state_memory, least=0)
        for key, count in (("clients", self.clients), ("cohort", self.cohort)):
            if count is not None:
                in_range(key, count, least=1)
        for key, word, words in (("reduce", self.reduce, REDUCE), ("dtype", self.dtype, DTYPES),
                                 ("precision", self.precision, PRECISIONS), ("progress", self.progress, PROGRESS),
                                 ("on_bad_update", self.on_bad_update, ON_BAD_UPDATE)):
            if word not in words:
                raise ConfigError(key, word, one_of(words, word))
        if self.max_update_norm is not None:
            in_range("max_update_norm", self.max_update_norm, above=0)
        if self.name is not None and (not NAME.fullmatch(self.name) or self.name == LATEST):
            raise ConfigError("name", self.name, f"letters, digits and . _ + = -, but not {LATEST!r}",
                              "null means <algorithm>-<task>.")
        if self.launch is not None and not NAME.fullmatch(self.launch):
            raise ConfigError("launch", self.launch, "letters, digits and . _ + = -, or null for a run of its own")
        if not self.runs:
            raise ConfigError("runs", self.runs, "a folder, such as runs")
        if self.clients is not None and self.cohort is not None and self.cohort > self.clients:
            raise ConfigError("cohort", self.cohort,
                              f"1 to {self.clients}, the number of clients, or null for all",
                              "Ask for fewer clients per round, or raise clients.")


def _needs_name(section: str, name: str | None, **others: Any) -> None:
    """Refuse settings of an optimiser where none is named."""
    for key, value in others.items():
        if name is None and value is not None:
            raise ConfigError(f"{section}.{key}", value, f"{section}.optimizer=NAME beside it",
                              "`fedlearn list optimizers` shows the names.")
