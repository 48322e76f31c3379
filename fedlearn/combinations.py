"""Which choices go together: kinds of algorithms, their protocols, backends, and what an algorithm needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

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
from .policies.participation import Participation

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


def check_participation(e: Experiment) -> None:
    """Refuse what nobody could honour if clients were left out.

    Raises:
        ConfigError: naming both choices.
    """
    p, kind, clients = e.participation, KINDS[e.protocol.kind], len(e.task.sizes)
    unusual = [(f"participation.{f.name}", getattr(p, f.name), f.default) for f in fields(Participation)
               if getattr(p, f.name) != f.default]
    left_out = unusual + ([("on_bad_update", e.on_bad_update, "stop")] if e.on_bad_update != "stop" else [])
    bound = [("max_update_norm", e.max_update_norm, None)] if e.max_update_norm is not None else []
    refusals: list[tuple[bool, list[tuple[str, Any, Any]], str, str]] = [
        (kind == "gossip", left_out + bound, "protocol=gossip", "There is no server that could leave a node out."),
        (kind == "coded", left_out, "protocol=coded", "It has its own stragglers, and decodes by who replied."),
        (kind == "asynchronous", unusual, "protocol=asynchronous", "Nobody is waited for."),
        (getattr(e.algorithm, "everybody", False), left_out, f"algorithm {name_of(e.algorithm)}",
         "It is only defined with full participation."),
        (not e.sampling.travels, [u for u in unusual if u[0] != "participation.least"],
         f"sampling={e.sampling.name}", "The only client is its own server."),
    ]
    for holds, choices, beside, why in refusals:
        for key, found, usual in choices if holds else ():
            raise ConfigError(key, found, f"{'null' if usual is None else usual} with {beside}", why)
    if p.least > e.clients_at_a_time:
        raise ConfigError("participation.least", p.least, f"at most {e.clients_at_a_time}, the clients of a cohort",
                          "Lower it, or raise cohort.")
    if p.over > 1:
        _check_over(e, clients)


def _check_over(e: Experiment, clients: int) -> None:
    """Refuse over-selection where the replies that are dropped would count in some way."""
    p = e.participation
    asked = p.asked(e.clients_at_a_time)
    if asked > clients:
        raise ConfigError("participation.over", p.over, f"at most {clients / e.clients_at_a_time:g} with "
                          f"cohort={e.clients_at_a_time} of {clients} clients", f"It asks {asked} of them.")
    if e.sampling.replacement:
        raise ConfigError("participation.over", p.over, f"1.0 with sampling={e.sampling.name}",
                          "It draws clients more than once; those cut off would bias what it is unbiased for.")
    if e.weighting.weights(np.arange(1), np.ones(1), e.task.sizes[:1], int(e.task.sizes.sum()),
                           clients).denominator is not None:
        raise ConfigError("participation.over", p.over, f"1.0 with weighting={e.weighting.name}",
                          "It divides by the clients that are asked; those cut off would count as zeros.")
