"""The Python face: the same run as the command line's, from objects instead of configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backends.inprocess import InProcess
from .combinations import kind_of, modified, name_of
from .contracts import Modifier, PeerAlgorithm, ServerAlgorithm, Stage, Task
from .errors import ConfigError
from .experiment import Experiment, RoundProtocol
from .policies.clock import Clock
from .policies.intervals import ConstantIntervals, Intervals
from .policies.local_work import LocalWork
from .policies.participation import Participation
from .policies.sampling import Sampling, UniformSampling
from .policies.schedule import Constant, Schedule
from .policies.weighting import RatioWeighting, UniformWeighting, Weighting
from .protocols.asynchronous import Asynchronous
from .protocols.coded import Coded
from .protocols.gossip import Gossip
from .protocols.synchronous import Synchronous
from .running.execute import History, checkpoint_of, execute
from .running.profile import Profile
from .tasks.supervised import SupervisedTask
from .tracking import Tracker
from .tracking.run_folder import RunFolder
from .work import Backend

if TYPE_CHECKING:
    from .modifiers.optimizers import LocalOptimizer, ServerOptimizer

PROTOCOLS: dict[type, type[RoundProtocol]] = {p.kind: p for p in (Synchronous, Asynchronous, Coded, Gossip)}


def run(*, algorithm: ServerAlgorithm | PeerAlgorithm, rounds: int, task: Task | None = None,
        model: nn.Module | None = None, loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        clients: Any = None, test: tuple[Any, Any] | None = None, cohort: int | None = None,
        local: LocalWork | None = None, local_optimizer: LocalOptimizer | str | None = None,
        server_optimizer: ServerOptimizer | str | None = None,
        backend: Backend | None = None, protocol: RoundProtocol | None = None,
        sampling: Sampling | None = None, weighting: Weighting | None = None, schedule: Schedule | None = None,
        clock: Clock | None = None, intervals: Intervals | None = None,
        modifiers: Mapping[str, Modifier] | None = None, pipeline: Mapping[str, Stage] | None = None, seed: int = 0,
        reduce: str = "exact", oracle: str = "auto", precision: str = "float32", stack: bool | str = "auto",
        state_memory: int = 1024, dtype: torch.dtype = torch.float32, evaluate_every: int = 1,
        evaluate_samples: int | None = None, evaluate_aside: bool = False, checkpoint_every: int = 10,
        checkpoint_keep: int = 3, on_bad_update: str = "stop", max_update_norm: float | None = None,
        participation: Participation | None = None,
        folder: str | Path | None = None, resume: bool = False, trackers: Sequence[Tracker] = (),
        progress: str = "auto", profile: bool = False) -> History:
    """Train and return the history, with the model at its final weights.

    Give either ``task``, or ``model`` with ``clients`` (a list with one (features, labels) pair of
    arrays or tensors, or one ``torch.utils.data.Dataset``, for each client) and optionally ``test``
    (features, labels). ``local_optimizer`` and ``server_optimizer`` are names of optimisers of torch.optim or
    pytorch_optimizer, or objects of ``modifiers.optimizers`` that say more. The other arguments are those of
    ``Experiment``; defaults are the command line's. With ``folder`` the run is recorded there, and ``resume=True``
    continues it. With ``profile=True`` the history's ``profile`` says where the rounds' time went:
    ``print(history.profile.table())``.

    Raises:
        ConfigError: if arguments are missing or cannot go together, naming them.
        FedlearnError: for everything else that can go wrong, in one line.
    """
    if (task is None) == (model is None or clients is None):
        raise ConfigError("task", task, "either task, or model and clients")
    if task is None:
        assert model is not None
        task = SupervisedTask(model, loss, clients, test, dtype)
    if protocol is None:
        protocol = PROTOCOLS[kind_of(algorithm)]()
    if weighting is None:
        weighting = RatioWeighting() if isinstance(protocol, Synchronous) else UniformWeighting()
    if local is None:
        local = LocalWork(steps=1, batch_size=None) if isinstance(protocol, Coded) else LocalWork()
    if local_optimizer is not None or server_optimizer is not None:
        from .modifiers.optimizers import optimised

        algorithm = optimised(algorithm, task, local_optimizer, server_optimizer)
    algorithm, task = modified(algorithm, task, modifiers or {})
    experiment = Experiment(
        algorithm=algorithm, task=task, rounds=rounds, protocol=protocol, backend=backend or InProcess(),
        sampling=sampling or UniformSampling(), weighting=weighting, cohort=cohort, local=local,
        schedule=schedule or Constant(), clock=clock or Clock(), intervals=intervals or ConstantIntervals(),
        pipeline=pipeline or {}, seed=seed, reduce=reduce,
        oracle=oracle, precision=precision, stack=stack, state_memory=state_memory, evaluate_every=evaluate_every,
        evaluate_samples=evaluate_samples, evaluate_aside=evaluate_aside, checkpoint_every=checkpoint_every,
        checkpoint_keep=checkpoint_keep, on_bad_update=on_bad_update, max_update_norm=max_update_norm,
        participation=participation or Participation())
    kept = None if folder is None else RunFolder(Path(folder))
    if kept and kept.metrics() and not resume:
        raise ConfigError("folder", str(folder), "a new folder, or resume=True to continue the run in it")
    title = f"{name_of(algorithm)} {experiment.backend.describe()}"
    watch = Profile() if profile else None
    if kept is None:
        return execute(experiment, None, trackers, progress, title, profile=watch)
    with kept.claim():
        start = checkpoint_of(experiment, kept) if resume else None
        return execute(experiment, kept, trackers, progress, title, start=start, profile=watch)
