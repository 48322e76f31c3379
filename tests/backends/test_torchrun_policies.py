"""Policies and modifiers on ranks: what they draw, and what they go by, does not depend on the placement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import blobs, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.combinations import modified
from fedlearn.modifiers.example_curriculum import ExampleCurriculum
from fedlearn.modifiers.gradient_noise import GradientNoise
from fedlearn.modifiers.norm_test import NormTest
from fedlearn.policies.client_curriculum import ClientCurriculum
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.temperature import TemperatureSampling
from fedlearn.policies.weighting import SchemeOne

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]


@pytest.mark.parametrize("choices", [
    {"sampling": ClientCurriculum(full=1.0), "local": LocalWork(epochs=2, batch_size=4)},
    {"sampling": TemperatureSampling(cooldown="linear", at=3), "weighting": SchemeOne(),
     "local": LocalWork(steps=8, batch_size=3)}], ids=["client curriculum", "temperature"])
def test_two_ranks_end_in_the_same_bits(choices: dict[str, Any]) -> None:
    rules = {"noise": GradientNoise(), "order": ExampleCurriculum(least=4), "test": NormTest(eta=0.2, scaling="sqrt")}
    algorithm, task = modified(FedAvg(lr=0.05), blobs(), rules)
    found = [play(experiment(algorithm, 5, task=task, cohort=3, **choices, **backend))
             for backend in ({}, {"backend": Torchrun(workers=2)})]
    assert torch.equal(found[0][0], found[1][0])
    batches = [[report.extra["batch_size"] for report in reports] for _, reports in found]
    assert batches[0] == batches[1] and batches[0][-1] > batches[0][0]
    assert [report.cohort for report in found[0][1]] == [report.cohort for report in found[1][1]]
