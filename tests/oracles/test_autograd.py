"""The autograd oracle against plain PyTorch, and its promise not to copy."""

import pytest
import torch
from problems import blobs
from torch.nn import functional as F

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
