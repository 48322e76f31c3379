"""MOON against its paper written in torch, and where it is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from problems import blobs, experiment, play
from torch import nn
from torch.nn import functional as F

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.moon import Moon
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import FullParticipation
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.running.execute import setup_of
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.quadratic import Quadratic
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.vectors import load, trainable
from fedlearn.worker.stacking import oracle_for


def represented(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    return model[:-1](x)


def moon_in_torch(task: SupervisedTask, rounds: int, steps: int, lr: float, mu: float, temperature: float
                  ) -> torch.Tensor:
    """Algorithm 1 with whole local data at each step, written with modules and torch's own SGD."""
    model = copy.deepcopy(task.model)
    old = [copy.deepcopy(model) for _ in task.sizes]
    for _ in range(rounds):
        ends = []
        for m, n in enumerate(task.sizes):
            x, y = task.store.batch(m, torch.arange(int(n)))
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=lr)
            for _ in range(steps):
                optimizer.zero_grad()
                z = represented(local, x)
                with torch.no_grad():
                    z_glob, z_prev = represented(model, x), represented(old[m], x)
                logits = torch.stack([F.cosine_similarity(z, z_glob), F.cosine_similarity(z, z_prev)], 1)
                contrast = F.cross_entropy(logits / temperature, torch.zeros(len(z), dtype=torch.int64))
                (F.cross_entropy(local(x), y) + mu * contrast).backward()
                optimizer.step()
            old[m] = local
            ends.append(torch.cat([p.detach().reshape(-1) for p in local.parameters()]))
        load(model, torch.stack(ends).mean(0))
    return torch.cat([p.detach().reshape(-1) for _, p in trainable(model)])


def moon(task: SupervisedTask, **choices: Any) -> torch.Tensor:
    local = LocalWork(steps=3, batch_size=None)
    return play(experiment(Moon(lr=0.3, **choices), rounds=3, task=task, local=local, weighting=UniformWeighting(),
                           sampling=FullParticipation()))[0]


@pytest.mark.parametrize(("mu", "temperature"), [(1.0, 0.5), (5.0, 0.3)])
def test_moon_is_its_paper_in_torch(mu: float, temperature: float) -> None:
    task = blobs(dtype=torch.float64)
    expected = moon_in_torch(task, 3, 3, 0.3, mu, temperature)
    torch.testing.assert_close(moon(task, mu=mu, temperature=temperature), expected, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(expected, moon_in_torch(task, 3, 3, 0.3, 0.0, temperature), atol=1e-4)


def test_moon_without_its_term_is_fedavg() -> None:
    task = blobs(dtype=torch.float64)
    plain, _ = play(experiment(FedAvg(lr=0.3), rounds=3, task=task, local=LocalWork(steps=3, batch_size=None),
                               weighting=UniformWeighting(), sampling=FullParticipation(), oracle="autograd"))
    torch.testing.assert_close(moon(task, mu=0.0), plain, rtol=1e-13, atol=1e-14)


def net(*layers: nn.Module) -> SupervisedTask:
    data = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(2)]
    return SupervisedTask(nn.Sequential(*layers), "cross_entropy", data)


@pytest.mark.parametrize(("choices", "key", "says"), [
    ({"task": Quadratic().build(4, 0, torch.float64)}, "task", "It has no network"),
    ({"task": Logistic().build(4, 0, torch.float64)}, "model", "no trained layer before its last one"),
    ({"task": net(nn.Linear(6, 3))}, "model", "no trained layer before its last one"),
    ({"task": net(nn.Linear(6, 3), nn.LayerNorm(3))}, "model", "its last layer is a LayerNorm, not Linear"),
    ({"oracle": "dense"}, "oracle", "auto or autograd with algorithm Moon"),
    ({"oracle": "vmap"}, "oracle", "auto or autograd with algorithm Moon"),
    ({"stack": True}, "stack", "representations of three models"),
])
def test_moon_is_refused_where_there_is_nothing_to_compare(choices: dict, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        oracle_for(setup_of(experiment(Moon(), **choices)))
    assert error.value.key == key and says in str(error.value) and "\n" not in str(error.value)


class Twice(nn.Module):
    """A net that registers its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.again(self.first(x)))


def test_a_last_layer_that_is_called_twice_is_refused_in_one_line() -> None:
    with pytest.raises(FedlearnError, match="found 2 calls in a forward pass; allowed: 1"):
        play(experiment(Moon(), task=net(Twice())))
