"""When clients work in stacks unasked, and that a stack says which of its clients failed."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from problems import SIZES, blobs, experiment, play
from torch import nn

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.config.assemble import experiment as assembled
from fedlearn.config.compose import compose
from fedlearn.contracts import Vec
from fedlearn.errors import ClientError, ConfigError
from fedlearn.oracles.dense import Dense
from fedlearn.oracles.steady import steady
from fedlearn.policies.local_work import LocalWork
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.running.execute import execute, setup_of
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.vectors import digest


def wide(width: int) -> SupervisedTask:
    clients = [(np.ones((n, 6), np.float32), np.zeros(n, np.int64)) for n in SIZES]
    return SupervisedTask(nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)), "cross_entropy", clients)


@pytest.mark.parametrize(("choices", "stacked"), [
    ({}, True),
    ({"stack": False}, False),
    ({"stack": True, "cohort": 1}, True),
    ({"cohort": 1}, False),
    ({"oracle": "autograd"}, False),
    ({"oracle": "vmap"}, False),                # its bits depend on the stack
    ({"task": wide(8)}, True),
    ({"task": wide(100_000)}, False),           # too large to be quicker
    ({"task": wide(8), "local": LocalWork(batch_size=None)}, True),
    ({"algorithm": FedBuff(buffer=2), "protocol": Asynchronous(), "cohort": 3}, False),
])
def test_small_dense_nets_are_stacked_unasked(choices: dict[str, Any], stacked: bool) -> None:
    choices = dict(choices)
    assert setup_of(experiment(choices.pop("algorithm", FedAvg()), **choices)).stack is stacked


def test_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fedlearn"):
        execute(experiment(FedAvg(), rounds=1))
        execute(experiment(FedAvg(), rounds=1, stack=False))
    stacked, alone = (r.getMessage() for r in caplog.records if "gradients" in r.getMessage())
    assert "clients stacked" in stacked and "stacked" not in alone


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="stack: found 'some'; allowed: auto, true or false"):
        experiment(FedAvg(), stack="some")


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1), Scaffold(lr=0.1)], ids=lambda a: type(a).__name__)
def test_stacked_and_alone_end_at_the_same_model(algorithm: Any) -> None:
    task = blobs(dtype=torch.float64)
    stacked, alone = (play(experiment(algorithm, task=task, stack=stack))[0] for stack in ("auto", False))
    assert torch.allclose(stacked, alone, rtol=1e-12, atol=1e-14)
    # The very same, asked for.
    assert digest(stacked) == digest(play(experiment(algorithm, task=task, stack=True))[0])


class Crowded:
    """A dense oracle whose last bits depend on how many clients share a stack."""

    stacks = True

    def __init__(self, inner: Dense) -> None:
        self.inner, self.many = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def enter(self, clients: Any, draws: Any = None) -> None:
        self.many = len(clients)
        self.inner.enter(clients, draws)

    def grad(self, x: Vec) -> Vec:
        return self.inner.grad(x) * (1 + 1e-7 * (self.many == 3))


def test_an_oracle_that_shows_the_size_of_its_stacks_is_found_out() -> None:
    task = blobs()
    oracle = task.oracle("dense")
    assert isinstance(oracle, Dense)
    assert steady(oracle, task.sizes, task.initial(0), 20)
    assert not steady(Crowded(oracle), task.sizes, task.initial(0), 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("guilty", [0, 3, 5])
def test_a_stack_names_the_client_that_failed(guilty: int) -> None:
    task = blobs()
    task.store.labels[int(task.store.offsets[guilty])] = -100
    e = experiment(FedAvg(), task=task, stack=True)
    with pytest.raises(ClientError, match=f"client {guilty}, .*found labels from -100") as caught:
        play(e)
    assert caught.value.client == guilty


def test_the_trial_computes_with_the_workers_threads_and_not_the_callers():
    choices = ["model=mlp", "heterogeneity=iid", "clients=6", "cohort=null", "local.steps=3"]
    before = torch.get_num_threads()
    decided = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            decided.append(setup_of(assembled(compose(choices))).stack)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert decided[0] == decided[1]
