"""Which choices go together: kinds of algorithms, their protocols, backends, and what an algorithm needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .contracts import (
    AsyncServerAlgorithm,
    CodedAlgorithm,
    Modifier,
    PeerAlgorithm,
    ServerAlgorithm,
    Task,
)
from .errors import ConfigError, one_of
from .policies.intervals import ConstantIntervals

if TYPE_CHECKING:
    from .experiment import Experiment, RoundProtocol
    from .work import Backend

# The kinds of algorithms, the most special first, and the protocol that runs each.
KINDS: dict[type, str] = {PeerAlgorithm: "gossip", CodedAlgorithm: "coded", AsyncServerAlgorithm: "asynchronous",
                          ServerAlgorithm: "synchronous"}


def kind_of(algorithm: Any) -> type:
    """Return the kind of an algorithm: which of the contracts it is written to.

    Raises:
        ConfigError: if it is written to none.
    """
    for kind in KINDS:
        if isinstance(algorithm, kind):
            return kind
    raise ConfigError("algorithm", type(algorithm).__name__, one_of(kind.__name__ for kind in KINDS),
                      "Inherit from one of them.")


def name_of(algorithm: Any) -> str:
    """Return the name of an algorithm, of the innermost one where modifiers are put around it."""
    while (inner := getattr(algorithm, "inner", None)) is not None:
        algorithm = inner
    return type(algorithm).__name__


def match(algorithm: Any, protocol: RoundProtocol, backend: Backend) -> None:
    """Check that a protocol runs an algorithm, and a backend the protocol.

    Raises:
        ConfigError: naming both choices.
    """
    kind, name = kind_of(algorithm), name_of(algorithm)
    if protocol.kind is not kind:
        raise ConfigError("protocol", type(protocol).__name__, f"protocol={KINDS[kind]} with algorithm {name}",
                          f"{name} is a {kind.__name__}.")
    if protocol.verb not in backend.verbs:
        raise ConfigError("backend", type(backend).__name__,
                          f"a backend with {protocol.verb} for protocol={KINDS[kind]}",
                          f"Choose backend=inprocess for algorithm {name}.")


def modified(algorithm: Any, task: Task, modifiers: Mapping[str, Modifier]) -> tuple[Any, Task]:
    """Return the algorithm and the task with modifiers put around them, in their order.

    Raises:
        ConfigError: if a modifier cannot go with them.
    """
    for name, modifier in modifiers.items():
        task = modifier.on(task)
        if type(modifier).around is Modifier.around:
            continue
        if kind_of(algorithm) is not ServerAlgorithm:
            raise ConfigError(f"modifiers.{name}", type(modifier).__name__, "an algorithm of protocol=synchronous",
                              f"{name_of(algorithm)} is a {kind_of(algorithm).__name__}.")
        algorithm = modifier.around(algorithm)
    return algorithm, task


def check_needs(e: Experiment) -> None:
    """Refuse what the algorithm, the intervals or the schedule cannot work with."""
    name, local = name_of(e.algorithm), e.local
    for key, by_step in (("intervals", not isinstance(e.intervals, ConstantIntervals)),
                         ("schedule", getattr(e.schedule, "by_step", False))):
        chosen = type(getattr(e, key)).__name__
        # In a single round every client counts from 0, however many steps it takes.
        if by_step and local.steps is None and (key == "intervals" or e.rounds > 1):
            raise ConfigError("local.steps", None, f"a number of steps with {key}={chosen}",
                              "It counts local steps, which clients with local.epochs take differently many of.")
        if by_step and e.protocol.kind not in (ServerAlgorithm, PeerAlgorithm):
            raise ConfigError(key, chosen, f"{key}=constant with protocol={KINDS[e.protocol.kind]}",
                              "It counts the local steps of clients that all work in the same rounds.")
    if local.steps is not None:
        e.intervals.check(e.rounds, local.steps)
    if hasattr(e.schedule, "check"):
        e.schedule.check(e.rounds)
    if getattr(e.algorithm, "equal_steps", False) and local.steps is None:
        raise ConfigError("local.steps", None, f"a number of steps with algorithm {name}",
                          "All its clients take the same number of local steps.")
    if getattr(e.algorithm, "alone", False) and e.sampling.travels:
        raise ConfigError("sampling", e.sampling.name, f"one with algorithm {name}", "It is of one machine.")
    if not e.sampling.travels and e.protocol.kind is not ServerAlgorithm:
        raise ConfigError("sampling", e.sampling.name, f"another with protocol={KINDS[e.protocol.kind]}",
                          "A single machine works by itself.")
    if e.stack is True and (why := getattr(e.algorithm, "unstackable", "")):
        raise ConfigError("stack", True, f"auto or false with algorithm {name}", why)
    whole = (e.clients_at_a_time == len(e.task.sizes) and not e.sampling.replacement
             and (e.sampling.travels or len(e.task.sizes) == 1))
    if getattr(e.algorithm, "everybody", False) and not whole:
        raise ConfigError("cohort", e.cohort, f"null (all {len(e.task.sizes)} clients) with algorithm {name}",
                          "It is only defined with full participation.")
