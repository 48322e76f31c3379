"""The convolution oracle gives the same bits on torchrun ranks as in this process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.nets import federation
from problems import experiment, play

from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.models.cnn import CNN
from fedlearn.policies.local_work import LocalWork
from fedlearn.vectors import digest

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_bits_do_not_depend_on_the_place(precision: str) -> None:
    task = federation(CNN(4, 16).build((1, 8, 8), 3), dtype=torch.float32, shape=(1, 8, 8))
    choices: dict[str, Any] = {"rounds": 2, "cohort": 5, "oracle": "conv", "precision": precision, "task": task,
                               "local": LocalWork(epochs=1, batch_size=5)}
    here, there = (digest(play(experiment(Scaffold(lr=0.1), **choices, **backend))[0])
                   for backend in ({}, {"backend": Torchrun(workers=2)}))
    assert here == there
