"""The evaluation of a run's models: on all test samples or on some, in line or beside the next round.

Beside the next round means: in one thread of this process, on a copy of the model, with as many threads of torch's
own as evaluations in line have, so that the bits are the same. The first evaluation of a process is always in line:
it shows whether the model draws random numbers while it is evaluated, which would disturb the clients' streams. The
last one is in line, too, and always on all test samples.
"""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ..contracts import Task, Vec
from ..errors import ConfigError, FedlearnError, ModelError
from ..experiment import Experiment


@dataclass(frozen=True)
class Measured:
    """The metrics of a model, the seconds that it took to get them, and whether other work went on meanwhile."""

    metrics: dict[str, float]
    seconds: float
    aside: bool = False


class Evaluation:
    """Evaluates the models of a run, at most one at a time."""

    def __init__(self, e: Experiment) -> None:
        self.task, self.usual = e.task, e.evaluator()
        self.pool = ThreadPoolExecutor(1, "fedlearn-evaluation") if e.evaluate_aside else None
        self.first = True

    def start(self, x: Vec, final: bool = False) -> Future[Measured]:
        """Evaluate the model x [P], or begin to; the one before must be done.

        Raises:
            ModelError: if a model cannot be evaluated; here, or from the future's ``result``.
            ConfigError: if it cannot be evaluated beside other work.
        """
        if self.pool and not self.first and not final:
            return self.pool.submit(_aside, self.usual, x.clone(), torch.get_num_threads())
        before = _streams() if self.pool and self.first else None
        now: Future[Measured] = Future()
        now.set_result(measure(self.task if final else self.usual, x))
        if before and before != _streams():
            raise ConfigError("evaluate.aside", True, "false with a model that draws random numbers in evaluation",
                              "They come from the streams that the clients' work draws from at the same time.")
        self.first = False
        return now

    def wait(self, pending: Future[Measured]) -> Measured:
        """Return what an evaluation beside the rounds gives, as soon as it is done; raises what it raised."""
        return pending.result()

    def close(self) -> None:
        """Begin no more evaluations."""
        if self.pool:
            self.pool.shutdown(wait=False, cancel_futures=True)


def measure(task: Task, x: Vec, aside: bool = False) -> Measured:
    """Evaluate the model x [P].

    Raises:
        ModelError: in one line, whatever went wrong.
    """
    began = perf_counter()
    try:
        metrics = {f"test_{name}": value for name, value in task.evaluate(x).items()}
    except FedlearnError:
        raise
    except Exception as error:
        raise ModelError(f"the evaluation failed with {type(error).__name__}: {' '.join(str(error).split())}; check "
                         "that the model's inputs and outputs, the loss and the test data fit together") from error
    return Measured(metrics, perf_counter() - began, aside)


def _aside(task: Task, x: Vec, threads: int) -> Measured:
    torch.set_num_threads(threads)  # of this thread: a new one would take as many as there are cores
    return measure(task, x, aside=True)


def _streams() -> tuple[Any, ...]:
    """Return the states of the global random streams."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]
    kind, keys, *rest = np.random.get_state()
    return [s.numpy().tobytes() for s in states], random.getstate(), kind, keys.tobytes(), *rest  # type: ignore
