"""The autograd oracle against plain PyTorch, and its promise not to copy."""

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from oracles.nets import far, federation, net
from problems import blobs
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.vectors import flatten, load

INDEX = torch.tensor([0, 3, 2])


@pytest.fixture
def bound():
    task = blobs(dtype=torch.float64)
    oracle = task.oracle("autograd")
    oracle.enter([3])
    oracle.at([INDEX])
    torch.manual_seed(1)
    return task, oracle, torch.randn_like(task.initial(0))


def plain_loss(task, x, index=None):
    """The same loss through functional_call, from which torch.autograd can differentiate in x."""
    parameters, start = {}, 0
    for name, p in task.model.named_parameters():
        parameters[name] = x[start:start + p.numel()].view(p.shape)
        start += p.numel()
    features, labels = task.store.client(3)
    if index is not None:
        features, labels = features[index], labels[index]
    return F.cross_entropy(torch.func.functional_call(task.model, parameters, (features,)), labels)


def test_gradient_value_and_whole_gradient(bound):
    task, oracle, x = bound
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(plain_loss(task, z, INDEX), z)
    assert torch.allclose(oracle.grad(x), g, rtol=0, atol=1e-14)
    assert torch.allclose(oracle.value(x), plain_loss(task, x, INDEX).reshape(1), rtol=0, atol=1e-14)
    (whole,) = torch.autograd.grad(plain_loss(task, z), z)
    assert torch.allclose(oracle.full_grad(x), whole, rtol=0, atol=1e-14)
    assert torch.allclose(oracle.full_value(x), plain_loss(task, x).reshape(1), rtol=0, atol=1e-14)


def test_hessian_vector_product(bound):
    task, oracle, x = bound
    v = torch.randn_like(x)
    hessian = torch.autograd.functional.hessian(lambda z: plain_loss(task, z, INDEX), x)
    assert torch.allclose(oracle.hvp(x, v), hessian @ v, rtol=0, atol=1e-12)


def test_the_argument_is_used_in_place_and_never_changed(bound):
    _, oracle, x = bound
    before = x.clone()
    oracle.grad(x)
    assert all(p.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for p in oracle.parameters)
    oracle.hvp(x, x)
    oracle.full_grad(x)
    oracle.value(x)
    assert torch.equal(x, before)


def test_a_step_in_place_is_seen_and_another_vector_is_taken_over(bound):
    _, oracle, x = bound
    first = oracle.grad(x).clone()
    x.add_(1.0)
    moved = oracle.grad(x).clone()
    assert not torch.equal(first, moved)
    assert torch.equal(oracle.grad(x - 1.0 + 1.0), moved)
    assert oracle.grad(x).data_ptr() == oracle.grad(x).data_ptr()


def test_losses_are_added_up_until_another_client_enters(bound):
    _, oracle, x = bound
    oracle.grad(x)
    oracle.grad(x)
    assert oracle.calls == 2
    assert float(oracle.loss) == pytest.approx(2 * float(oracle.value(x)), rel=1e-6)
    oracle.enter([0])
    assert oracle.calls == 0 and float(oracle.loss) == 0


def test_two_oracles_of_one_task_do_not_meet():
    task = blobs()
    one, two = task.oracle("autograd"), task.oracle("autograd")
    x = task.initial(0)
    for oracle, client in ((one, 0), (two, 1)):
        oracle.enter([client])
        oracle.at([torch.tensor([0, 1])])
    g = one.grad(x).clone()
    two.grad(x + 1)
    assert torch.equal(one.grad(x), g)
    load(task.model, x + 5)
    assert torch.equal(one.grad(x), g)
    assert torch.equal(flatten(task.model.parameters()), x + 5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_task_moves_to_a_device_with_everything_that_its_oracles_need(device):
    here = blobs(dtype=torch.float64)
    there = here.to(device)
    x = here.initial(0)
    results = []
    for task in (here, there):
        oracle = task.oracle("autograd")
        oracle.enter([2])
        oracle.at([INDEX])
        start = task.initial(0)
        assert start.device == task.store.features.device
        results.append([oracle.grad(start).cpu().clone(), oracle.full_grad(start).cpu(), oracle.value(start).cpu(),
                        torch.tensor(list(task.evaluate(start).values()))])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-12)
    assert torch.equal(x, here.initial(0)) and here.store.features.device.type == "cpu"


class Leaf(nn.Module):
    """A part of nn.Sequential with a linear layer of its own, into whose forward pass a test puts what it wants."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], layer: nn.Linear | None = None) -> None:
        super().__init__()
        self.layer, self.how = layer or nn.Linear(6, 6), forward
        self.others: list[nn.Linear] = []       # no modules of its own

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def shares() -> nn.Module:
    first = nn.Linear(6, 6)
    return nn.Sequential(first, nn.Tanh(), Leaf(lambda leaf, x: leaf.layer(x), first), nn.Linear(6, 3))


def outside() -> nn.Module:
    """The weights of a linear layer are used again where it is not to be seen."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), Leaf(lambda leaf, x: leaf.layer(x) @ leaf.others[0].weight),
                          nn.Linear(6, 3))
    model[2].others.append(model[0])
    return model


def checkpointed() -> nn.Module:
    """Weights are reached in a backward pass within the backward pass, and once more outside it, before or after."""
    def again(leaf: Any, x: Tensor) -> Tensor:
        return F.linear(leaf.layer(x), leaf.others[0].weight, leaf.others[0].bias)

    model = nn.Sequential(nn.Linear(6, 6), Leaf(lambda leaf, x: leaf.layer(checkpoint(
        again, leaf, x, use_reentrant=True))), nn.Linear(6, 3))
    model[1].others.append(model[0])
    return model


@pytest.mark.parametrize("make", [shares, outside, checkpointed])
def test_weights_that_are_used_in_several_places_get_the_sum_of_their_gradients(make: Callable[[], nn.Module]) -> None:
    task = federation(make())
    oracle = task.oracle("autograd")
    expected = deepcopy(task.model)
    draws = torch.tensor([0, 5, 2])
    oracle.enter([3])
    oracle.at([draws])
    features, labels = task.store.batch(3, draws)
    for _ in range(2):
        expected.zero_grad()
        F.cross_entropy(expected(features), labels).backward()
        assert far(oracle.grad(task.initial(0)), flatten([p.grad for p in expected.parameters()])) < 1e-13


def test_a_parameter_that_has_no_gradient_this_time_has_none_of_the_last_time() -> None:
    task = federation(nn.Sequential(nn.Linear(6, 6), Leaf(lambda leaf, x: (
        x + leaf.layer(x) if len(x) > 1 else x.detach())), nn.Linear(6, 3)))
    oracle = task.oracle("autograd")
    oracle.enter([3])
    x = task.initial(0)
    for draw, count in ((torch.arange(4), len(x)), (torch.arange(1), 21)):
        oracle.at([draw])
        assert int(oracle.grad(x).count_nonzero()) == count


def test_sparse_gradients_are_taken() -> None:
    rng = np.random.default_rng(0)
    clients = [(torch.from_numpy(rng.integers(0, 9, (5, 4))), torch.from_numpy(rng.integers(0, 3, 5)))] * 2
    gradients = []
    for sparse in (True, False):
        torch.manual_seed(0)
        task = SupervisedTask(nn.Sequential(nn.Embedding(9, 2, sparse=sparse), nn.Flatten(), nn.Linear(8, 3)),
                              "cross_entropy", clients)
        oracle = task.oracle("autograd")
        oracle.enter([1])
        oracle.at([torch.tensor([0, 4])])
        gradients.append(oracle.grad(task.initial(0)).clone())
    assert torch.equal(*gradients) and gradients[0].count_nonzero() > 0


def test_a_loss_may_hold_the_gradient_of_the_net_in_its_input() -> None:
    class Input(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen[0] = x.detach().requires_grad_()
            return seen[0]

    def steep(out: Tensor, y: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(out.logsumexp(1).sum(), seen[0], create_graph=True)
        return F.cross_entropy(out, y) + slope.square().sum()

    seen: list[Tensor] = [torch.empty(0)]
    plain = nn.Sequential(Input(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    task = federation(plain, steep)
    oracle = task.oracle("autograd")
    oracle.enter([3])
    draw = torch.tensor([0, 5, 2])
    oracle.at([draw])
    features, labels = task.store.batch(3, draw)
    steep(plain(features), labels).backward()
    assert far(oracle.grad(task.initial(0)), flatten([p.grad for p in plain.parameters()])) < 1e-13


def test_the_bits_do_not_depend_on_where_the_vector_lies() -> None:
    task = federation(net(3), dtype=torch.float32)
    oracle = task.oracle("autograd")
    oracle.enter([3])
    oracle.at([INDEX])
    x = task.initial(0)
    first = oracle.grad(x).clone()
    unaligned = torch.empty(len(x) + 1)[1:].copy_(x)
    assert torch.equal(oracle.grad(unaligned), first)
    assert oracle.parameters[0].data_ptr() % 64 == 0
    assert torch.equal(oracle.grad(unaligned.mul_(2)).clone(), oracle.grad(2 * x))


def test_an_oracle_that_is_let_go_is_freed() -> None:
    task = blobs()
    oracle = task.oracle("autograd")
    oracle.enter([0])
    oracle.at([INDEX])
    oracle.grad(task.initial(0))
    gone = weakref.ref(oracle)
    del oracle
    gc.collect()
    assert gone() is None
