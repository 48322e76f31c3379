"""The vmap oracle against autograd, for nets that nothing else can stack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles.nets import far, federation
from problems import experiment, play
from torch import Tensor, nn

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.models.resnet import ResNet
from fedlearn.oracles.vmapped import Vmapped
from fedlearn.policies.local_work import LocalWork


class Gated(nn.Module):
    """A net with a forward of its own and a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(6), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x * torch.sigmoid(self.gate(x)) * self.scale)


def largest(out: Tensor, y: Tensor) -> Tensor:
    """A loss that is no mean over samples."""
    return nn.functional.cross_entropy(out, y, reduction="none").logsumexp(0)


@pytest.mark.parametrize("loss", ["cross_entropy", largest])
def test_equals_autograd_client_by_client(loss: Any) -> None:
    task = federation(Gated(), loss)
    plain, stack = task.oracle("autograd"), task.oracle("vmap")
    ids, draws = [3, 1, 5, 0], [torch.tensor(d) for d in ([0, 3, 9], [1, 2], [7, 8, 1], [5])]
    x = task.initial(0) + 0.1 * torch.randn(4, task.x0.numel(), generator=torch.Generator().manual_seed(0),
                                            dtype=torch.float64)
    stack.enter(ids)
    for left in (4, 2, 1):
        stack.at(draws[:left])
        got = [f(x[:left]).clone() for f in (stack.grad, stack.value, stack.full_grad, stack.full_value)]
        got.append(stack.hvp(x[:left], x[:left].cos()))
        for i in range(left):
            plain.enter([ids[i]])
            plain.at([draws[i]])
            expected = [plain.grad(x[i]).clone(), plain.value(x[i]), plain.full_grad(x[i]),
                        plain.full_value(x[i]), plain.hvp(x[i], x[i].cos())]
            for one, other in zip(got, expected, strict=True):
                assert one[i].shape == other.shape and far(one[i], other) < 1e-12


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.2), Scaffold(lr=0.1)])
@pytest.mark.parametrize("stack", [False, True])
def test_whole_runs_equal_those_of_autograd(algorithm: Any, stack: bool) -> None:
    task = federation(Gated())
    local = LocalWork(epochs=2, batch_size=5)
    (x, _), (expected, _) = (
        play(experiment(algorithm, 4, task=task, local=local, cohort=5, oracle=oracle, stack=stacked))
        for oracle, stacked in (("vmap", stack), ("autograd", False)))
    assert far(x, expected) < 1e-12


def test_a_convolutional_net_with_group_norm_is_stacked() -> None:
    task = federation(ResNet(4, 1, 2).build((1, 8, 8), 3), shape=(1, 8, 8), dtype=torch.float64)
    assert isinstance(task.oracle("vmap"), Vmapped)
    (x, _), (expected, _) = (play(experiment(FedAvg(lr=0.05), 1, task=task, oracle=oracle, stack=oracle == "vmap"))
                             for oracle in ("vmap", "autograd"))
    assert far(x, expected) < 1e-12
