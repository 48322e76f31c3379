"""An experiment: everything that was chosen for a run, and what a protocol makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .combinations import check_needs, check_participation, match
from .contracts import PeerAlgorithm, ServerAlgorithm, Stage, Task, Vec
from .errors import ClientError, ConfigError, in_range, one_of
from .faults import Faults
from .oracles.choose import PRECISIONS
from .policies.clock import Clock
from .policies.intervals import ConstantIntervals, Intervals
from .policies.local_work import LocalWork, RoundWork
from .policies.participation import Participation
from .policies.sampling import Sampling
from .policies.schedule import Constant, Schedule
from .policies.weighting import Weighting
from .seeds import generator
from .vectors import digest
from .work import SUMS, Backend, Event, Record, Workers

ON_BAD_UPDATE = ("stop", "refuse", "drop")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The choices of a run.

    ``cohort`` is the number of clients that work at a time; None means all. ``evaluate_every`` and
    ``checkpoint_every`` count rounds (0: only at the end). All evaluations but that of the last round stand
    on ``evaluate_samples`` test samples (None: on all); with ``evaluate_aside`` the next round works meanwhile.
    A worker keeps ``state_memory`` MB of client states in memory, the others are on disk. ``on_bad_update`` says what
    becomes of an update that is not finite, not as asked, longer than ``max_update_norm`` or could not be computed:
    "stop" (the run ends with the error), "refuse" (it is left out) or "drop" (and its client is not asked again).
    ``faults`` are injected on purpose (see ``faults``).

    Raises:
        ConfigError: if two choices cannot go together, naming them.
    """

    algorithm: ServerAlgorithm | PeerAlgorithm
    task: Task
    rounds: int
    protocol: RoundProtocol
    backend: Backend
    sampling: Sampling
    weighting: Weighting
    cohort: int | None = None
    local: LocalWork = field(default_factory=LocalWork)
    schedule: Schedule = field(default_factory=Constant)
    clock: Clock = field(default_factory=Clock)
    intervals: Intervals = field(default_factory=ConstantIntervals)
    pipeline: Mapping[str, Stage] = field(default_factory=dict)
    seed: int = 0
    reduce: str = "exact"
    oracle: str = "auto"
    precision: str = "float32"
    stack: bool | str = "auto"
    state_memory: int = 1024
    evaluate_every: int = 1
    evaluate_samples: int | None = None
    evaluate_aside: bool = False
    checkpoint_every: int = 10
    checkpoint_keep: int = 3
    on_bad_update: str = "stop"
    max_update_norm: float | None = None
    participation: Participation = field(default_factory=Participation)
    faults: Faults | None = None

    def __post_init__(self) -> None:
        in_range("rounds", self.rounds, least=1, whole=True)
        in_range("seed", self.seed, least=0, whole=True)
        in_range("evaluate.every", self.evaluate_every, least=0, whole=True)
        if self.evaluate_samples is not None:
            in_range("evaluate.samples", self.evaluate_samples, least=1, whole=True)
        in_range("checkpoint.every", self.checkpoint_every, least=0, whole=True)
        in_range("checkpoint.keep", self.checkpoint_keep, least=1, whole=True)
        in_range("state_memory", self.state_memory, least=0, whole=True)
        for key, method in (("protocol", "start"), ("backend", "open"), ("sampling", "cohort"), ("schedule", "factor"),
                            ("weighting", "weights"), ("clock", "duration"), ("local", "steps_for")):
            if not callable(getattr(getattr(self, key), method, None)):
                raise ConfigError(key, getattr(self, key), f"an object with {method}()")
        if self.reduce not in SUMS:
            raise ConfigError("reduce", self.reduce, one_of(SUMS, str(self.reduce)))
        if self.stack not in (True, False, "auto"):
            raise ConfigError("stack", self.stack, "auto, true or false")
        if self.precision not in PRECISIONS:
            raise ConfigError("precision", self.precision, one_of(PRECISIONS, str(self.precision)))
        if self.on_bad_update not in ON_BAD_UPDATE:
            raise ConfigError("on_bad_update", self.on_bad_update, one_of(ON_BAD_UPDATE, str(self.on_bad_update)))
        if self.max_update_norm is not None:
            in_range("max_update_norm", self.max_update_norm, above=0)
        if not isinstance(self.participation, Participation):
            raise ConfigError("participation", self.participation, "an object of policies.participation.Participation")
        clients = len(self.task.sizes)
        if self.cohort is not None:
            in_range("cohort", self.cohort, whole=True)
        if self.cohort is not None and not 1 <= self.cohort <= clients:
            raise ConfigError("cohort", self.cohort, f"1 to {clients}, the number of clients",
                              "Ask for fewer clients per round, or for more clients.")
        match(self.algorithm, self.protocol, self.backend)
        check_needs(self)
        check_participation(self)
        self.protocol.check(self)
        self.evaluator()

    def plan(self, round: int) -> RoundWork:
        """Return how much clients work in a round (from 0), as the policies say."""
        local = self.local
        if local.steps is None:
            return RoundWork(None, local.epochs, local.batch_size, round=round)
        if isinstance(self.intervals, ConstantIntervals):
            return RoundWork(local.steps, None, local.batch_size, before=round * local.steps, round=round)
        return RoundWork(self._steps[round], None, local.batch_size, before=sum(self._steps[:round]), round=round)

    @cached_property
    def _steps(self) -> list[int]:
        assert self.local.steps is not None
        return [self.intervals.steps(r, self.rounds, self.local.steps) for r in range(self.rounds)]

    def evaluator(self) -> Task:
        """Return what evaluates every model but the last: the task, or what it gives for this.

        Raises:
            ConfigError: if the task cannot be evaluated on a sample, or not beside other work.
        """
        if self.evaluate_samples is None and not self.evaluate_aside:
            return self.task
        make, name = getattr(self.task, "evaluator", None), type(self.task).__name__
        if make is None and self.evaluate_samples is not None:
            raise ConfigError("evaluate.samples", self.evaluate_samples, f"null with task {name}",
                              "It has no test set of which some samples could be taken.")
        if make is None:
            raise ConfigError("evaluate.aside", True, f"false with task {name}", "It has no method evaluator().")
        return make(self.evaluate_samples, generator(self.seed, "evaluation"))

    def identity(self) -> dict[str, str]:
        """Return, by key, what the result depends on: a run may be resumed where all this is the same."""
        return dict(self._identity)

    @cached_property
    def _identity(self) -> dict[str, str]:
        choices: dict[str, Any] = {
            "algorithm": self.algorithm, "protocol": self.protocol, "sampling": self.sampling, "local": self.local,
            "weighting": self.weighting, "schedule": self.schedule, "intervals": self.intervals, "clock": self.clock,
            "seed": self.seed,
            "cohort": self.clients_at_a_time, "reduce": self.reduce, "oracle": self.oracle,
            "precision": self.precision, "stack": self.stack,
            **{f"pipeline.{name}": stage for name, stage in self.pipeline.items()}}
        # An object of the user's own may have no repr but its address.
        known = {key: repr(value) if is_dataclass(value) or isinstance(value, int | str) else type(value).__name__
                 for key, value in choices.items()}
        x0 = self.task.initial(self.seed)
        task = f"{type(self.task).__name__}, {len(self.task.sizes)} clients, {int(self.task.sizes.sum())} samples, "
        known["task"] = task + f"{x0.numel()} parameters of {x0.dtype}, {digest(x0)[:16]}"
        known |= {"modifiers": self.task.modified} if hasattr(self.task, "modified") else {}
        # What is as it always was is left out: runs from before there was a choice may be resumed.
        if self.on_bad_update != "stop":
            known["on_bad_update"] = self.on_bad_update
        if self.max_update_norm is not None:
            known["max_update_norm"] = repr(float(self.max_update_norm))
        if self.participation != Participation():
            known["participation"] = repr(self.participation)
        horizon = any(getattr(of, "horizon", False)
                      for of in (self.algorithm, self.schedule, self.intervals, self.sampling))
        return known | ({"rounds": str(self.rounds)} if horizon else {})

    @property
    def clients_at_a_time(self) -> int:
        """The size of a cohort."""
        return len(self.task.sizes) if self.cohort is None else self.cohort


@dataclass(frozen=True)
class RoundReport:
    """What happened in a round.

    ``bytes_down`` and ``bytes_up`` are those of the payloads of all clients that were asked and
    all that replied; ``seconds`` the wall time by phase; ``simulated`` the virtual time since the
    start, in seconds; ``digest`` the SHA-256 of the server state; ``extra`` further metrics; ``refused`` says which
    clients' updates were left out, and why; ``late`` are the clients whose replies came too late. In a ``void`` round
    too few replied: nothing of it counts.
    """

    cohort: Sequence[int]
    records: Sequence[Record]
    bytes_down: int
    bytes_up: int
    seconds: Mapping[str, float]
    simulated: float
    digest: str
    extra: Mapping[str, float] = field(default_factory=dict)
    refused: Sequence[ClientError] = ()
    late: Sequence[int] = ()
    void: bool = False

    def events(self, done: int) -> list[Event]:
        """Return what a reader of the ledger should know of the round; it is the ``done``-th, as in the ledger."""
        times = Counter((int(e.client), e.what) for e in self.refused)    # more than once by asynchronous clients only
        events: list[Event] = [{"event": "update refused", "round": done, "client": client, "why": why}
                               | ({"times": n} if n > 1 else {}) for (client, why), n in times.items()]
        if self.void:
            events.append({"event": "round void", "round": done, "asked": len(self.cohort),
                           "refused": len(self.refused), "late": len(self.late)})
        return events


class Loop(Protocol):
    """A protocol at work: the state of a run, advanced round by round."""

    def round(self, r: int) -> RoundReport:
        """Advance by round r (from 0)."""
        ...

    def model(self) -> Vec:
        """Return the present model [P]."""
        ...

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a later ``restore`` needs, as tensors and JSON."""
        ...

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue from a snapshot."""
        ...

    def states(self) -> list[tuple[int, int]]:
        """Return (client, version) of every persistent state that may still be read."""
        ...


class RoundProtocol(Protocol):
    """Who talks when: a frozen dataclass of settings.

    ``kind`` is the class of algorithms that it runs, ``verb`` what it needs of a backend.
    """

    kind: ClassVar[type]
    verb: ClassVar[str]

    def check(self, experiment: Experiment) -> None:
        """Refuse choices that this protocol cannot honour.

        Raises:
            ConfigError: naming the key.
        """
        ...

    def prepare(self, experiment: Experiment) -> Task:
        """Return the task as the workers see it; most protocols leave it as it is."""
        ...

    def start(self, experiment: Experiment, workers: Workers) -> Loop:
        """Return the loop, before its first round."""
        ...
