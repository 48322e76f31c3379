"""Fingerprints of setups: equal for what is composed twice, different for what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import blobs, experiment, setup_of

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.agree import fingerprint
from fedlearn.tasks.quadratic import Quadratic
from fedlearn.work import Setup


def setup(task: Any = None, algorithm: Any = None, **choices: Any) -> Setup:
    return setup_of(experiment(algorithm or FedAvg(), task=task or blobs(), **choices))


def test_equal_however_often_it_is_composed_and_used() -> None:
    task = Quadratic().build(4, 0, torch.float64)
    before = fingerprint(setup(task))
    task.evaluate(task.initial(0))  # fills what the task caches
    assert fingerprint(setup(task)) == before == fingerprint(setup(Quadratic().build(4, 0, torch.float64)))


def test_folders_do_not_count(tmp_path: Path) -> None:
    assert fingerprint(replace(setup(), states=tmp_path)) == fingerprint(setup())


@pytest.mark.parametrize("other", [
    {"algorithm": Scaffold()}, {"algorithm": FedAvg(lr=0.5)}, {"seed": 1}, {"rounds": 5}, {"reduce": "fast"},
    {"task": blobs(seed=1)}, {"task": blobs((7, 23, 12, 40, 6, 17))}, {"task": blobs(dtype=torch.float64)}])
def test_what_differs(other: dict[str, Any]) -> None:
    assert fingerprint(setup(**other)) != fingerprint(setup())


def test_one_changed_sample_of_a_small_task() -> None:
    task = blobs()
    task.store.client(2)[0][3, 1] += 1
    assert fingerprint(setup(task)) != fingerprint(setup())
