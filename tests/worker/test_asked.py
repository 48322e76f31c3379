"""What clients are to send is found for every algorithm, modifier and optimiser, and is what they do send."""

from __future__ import annotations

from typing import Any

import pytest
from problems import blobs, experiment, play
from rows import ROWS

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.contracts import AsyncServerAlgorithm, CodedAlgorithm, ServerAlgorithm
from fedlearn.modifiers.averaging import Averaging
from fedlearn.modifiers.defection import Defection
from fedlearn.modifiers.norm_test import NormTest
from fedlearn.modifiers.optimizers import LocalOptimizer, optimised
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.protocols.synchronous import Synchronous

SERVED = [row.algorithm for row in ROWS if isinstance(row.algorithm, ServerAlgorithm)
          and not isinstance(row.algorithm, CodedAlgorithm) and not row.algorithm.alone]


def nobody_is_refused(algorithm: Any, stack: bool | str, task: Any = None) -> None:
    asynchronous = isinstance(algorithm, AsyncServerAlgorithm)
    e = experiment(algorithm, 2, task=task or blobs(), on_bad_update="refuse", max_update_norm=1e12, stack=stack,
                   weighting=UniformWeighting(), local=LocalWork(steps=2, batch_size=5),
                   protocol=Asynchronous() if asynchronous else Synchronous())
    _, reports = play(e)
    assert all(report.records and not report.refused and not report.void for report in reports)


@pytest.mark.parametrize("stack", [False, "auto"])
@pytest.mark.parametrize("algorithm", SERVED, ids=lambda algorithm: type(algorithm).__name__)
def test_of_every_algorithm(algorithm: Any, stack: bool | str) -> None:
    nobody_is_refused(algorithm, stack)


@pytest.mark.parametrize("modifier", [Averaging(), Averaging(over="steps"), Defection(eps=1.0), NormTest()],
                         ids=lambda modifier: str(modifier)[:24])
def test_of_modifiers(modifier: Any) -> None:
    nobody_is_refused(modifier.around(FedAvg()), False, modifier.on(blobs()))


@pytest.mark.parametrize("keep", ["reset", "keep"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_of_optimisers(name: str, keep: str) -> None:
    task = blobs()
    nobody_is_refused(optimised(FedAvg(), task, LocalOptimizer(name, keep=keep)), False, task)
