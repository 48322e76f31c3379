"""From a composed configuration to an experiment: build every part, then check across groups.

``parts`` builds all that a configuration names, without reading data, and refuses what cannot go
together; ``experiment`` goes on to load and split the data and to make the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlearn.config.build import build_as, build_node
from fedlearn.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fedlearn.config.settings import RunSettings
    from fedlearn.contracts import Task
    from fedlearn.data.store import ClientStore
    from fedlearn.experiment import Experiment

# group -> methods of which its objects have at least one
GROUPS = {"algorithm": ("local_step",), "task": ("load", "build", "evaluate"), "model": ("build", "forward"),
          "heterogeneity": ("split",), "backend": ("open",), "protocol": (), "sampling": ("cohort",),
          "weighting": ("weights",), "schedule": ("factor",), "clock": ("duration",), "intervals": ("steps",)}
NAMED = ("pipeline", "modifiers", "tracking")  # groups of several objects by name
OPTIONAL = ("model", "heterogeneity")


@dataclass(frozen=True)
class Parts:
    """All objects that a configuration names; ``model`` and ``heterogeneity`` may be None."""

    settings: RunSettings
    algorithm: Any
    task: Any
    model: Any
    heterogeneity: Any
    backend: Any
    protocol: Any
    sampling: Any
    weighting: Any
    schedule: Any
    clock: Any
    intervals: Any
    pipeline: dict[str, Any]
    modifiers: dict[str, Any]
    tracking: dict[str, Any]


def parts(cfg: DictConfig) -> Parts:
    """Build every part of a configuration and check that they go together; no data is read.

    Raises:
        ConfigError: naming the key, or both keys, of what cannot be run.
    """
    from fedlearn.config.settings import RunSettings

    known = {*GROUPS, *NAMED}
    settings = build_as(RunSettings, {key: node for key, node in cfg.items() if key not in known})
    with _seeded(settings.seed):  # a user's nn.Module draws its weights when it is built
        built = {group: _one(cfg.get(group), group) for group in GROUPS}
    named = {group: {name: build_node(node, f"{group}.{name}")
                     for name, node in (cfg.get(group) or {}).items()} for group in NAMED}
    made = Parts(settings=settings, **built, **named)
    check(made)
    return made


def experiment(cfg: DictConfig) -> Experiment:
    """Build the experiment that a configuration describes; loads and splits the data.

    Raises:
        ConfigError: if a key, a value or a combination cannot be run.
        DataError: if the data is missing or cannot be split as asked.
    """
    return assemble(parts(cfg))


def assemble(made: Parts) -> Experiment:
    """Load the data, make the model and put the experiment together."""
    from fedlearn.combinations import modified
    from fedlearn.experiment import Experiment
    from fedlearn.faults import read

    s = made.settings
    task = task_of(made)
    algorithm, task = modified(optimised(made, task), task, made.modifiers)
    return Experiment(
        algorithm=algorithm, task=task, rounds=s.rounds, cohort=s.cohort, local=s.local.work,
        sampling=made.sampling, weighting=made.weighting, schedule=made.schedule, clock=made.clock,
        intervals=made.intervals, pipeline=made.pipeline, backend=made.backend, protocol=made.protocol, seed=s.seed,
        reduce=s.reduce, oracle=s.oracle, precision=s.precision, stack=s.stack, state_memory=s.state_memory,
        evaluate_every=s.evaluate.every, evaluate_samples=s.evaluate.samples, evaluate_aside=s.evaluate.aside,
        checkpoint_every=s.checkpoint.every, checkpoint_keep=s.checkpoint.keep, on_bad_update=s.on_bad_update,
        max_update_norm=s.max_update_norm, participation=s.participation,
        faults=read(s.faults) if s.faults is not None else None)


def optimised(made: Parts, task: Task | None = None) -> Any:
    """Return the algorithm, with the named optimisers around it where there are any."""
    local, server = made.settings.local, made.settings.server
    if local.optimizer is None and server.optimizer is None:
        return made.algorithm
    from fedlearn.modifiers.optimizers import LocalOptimizer, ServerOptimizer, optimised

    return optimised(made.algorithm, task,
                     local.optimizer and LocalOptimizer(local.optimizer, local.options or {}, local.keep),
                     server.optimizer and ServerOptimizer(server.optimizer, server.lr, server.options or {}))


def task_of(made: Parts) -> Task:
    """Return the task with its clients' data: synthetic, supervised, or a user's own."""
    import torch

    s = made.settings
    dtype = getattr(torch, s.dtype)
    if hasattr(made.task, "evaluate"):
        return made.task
    if hasattr(made.task, "build"):
        return made.task.build(s.clients, s.seed, dtype)
    from fedlearn.tasks.private import PrivateTask
    from fedlearn.tasks.supervised import SupervisedTask

    raw, store = split(made)
    module = made.model
    if not isinstance(module, torch.nn.Module):
        with _seeded(s.seed):
            module = module.build(tuple(raw.train_x.shape[1:]), raw.classes)
    test = (raw.test_x, raw.test_y) if len(raw.test_x) else None
    return (PrivateTask if raw.store is not None else SupervisedTask)(module, "cross_entropy", store, test, dtype=dtype)


def split(made: Parts) -> tuple[Any, ClientStore]:
    """Return the raw data and the clients' store that a configuration describes.

    Raises:
        ConfigError: if the task generates its own clients.
        DataError: if the data is missing or cannot be split as asked.
    """
    from fedlearn import seeds

    if not hasattr(made.task, "load"):
        raise ConfigError("task", type(made.task).__name__, "a task with a data set",
                          "The data of a synthetic task is not split; its own keys say how clients differ.")
    s, raw = made.settings, made.task.load()
    if raw.store is not None and _name(made.heterogeneity) != "Natural":
        raise ConfigError("heterogeneity", _name(made.heterogeneity), f"natural with task {_name(made.task)}",
                          "Its samples are with their clients already.")
    rng = seeds.generator(s.seed, "partition")
    return raw, made.heterogeneity.split(raw, s.clients, rng, least=s.min_samples)


def check(made: Parts) -> None:
    """Refuse combinations that cannot be run.

    Raises:
        ConfigError: naming both keys.
    """
    from fedlearn.combinations import match

    match(made.algorithm, made.protocol, made.backend)
    optimised(made)
    _check_task(made)
    if hasattr(made.weighting, "check"):
        made.weighting.check(made.sampling)


def _check_task(made: Parts) -> None:
    name, heterogeneity = _name(made.task), _name(made.heterogeneity)
    if hasattr(made.task, "load"):
        if made.model is None:
            raise ConfigError("model", None, f"a model for task {name}", "Choose one, as in model=mlp.")
        if made.heterogeneity is None:
            raise ConfigError("heterogeneity", None, f"a way to split the data of task {name}")
        return
    if made.heterogeneity is not None and heterogeneity != "Natural":
        raise ConfigError("heterogeneity", heterogeneity, f"heterogeneity=natural with task {name}",
                          "Its clients differ by the keys of the task itself.")
    if made.model is not None:
        raise ConfigError("model", _name(made.model), f"model=none with task {name}", "It is its own model.")
    if made.settings.clients is None and hasattr(made.task, "build"):
        raise ConfigError("clients", None, f"a number of clients with task {name}, which generates them")


def _one(node: Any, group: str) -> Any:
    if not node:
        if group in OPTIONAL:
            return None
        raise ConfigError(group, None, f"an option of the group; `fedlearn list {group}` shows them")
    built = build_node(node, group)
    methods = GROUPS[group]
    if methods and not any(callable(getattr(built, method, None)) for method in methods):
        raise ConfigError(f"{group}._target_", node["_target_"], f"a class with {' or '.join(methods)}()",
                          f"`fedlearn list {group}` shows those that are shipped.")
    return built


def _name(part: Any) -> str:
    return type(part).__name__


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let torch's own stream start at the model's seed, and give the caller's stream back after."""
    import torch

    from fedlearn import seeds

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.torch_seed(seed, "model"))
        yield


