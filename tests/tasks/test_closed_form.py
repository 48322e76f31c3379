"""Closed-form oracles against automatic differentiation, alone and stacked."""

import pickle

import pytest
import torch

from fedlearn.errors import ConfigError
from fedlearn.policies.local_work import LocalWork
from fedlearn.seeds import generator
from fedlearn.tasks.least_squares import LeastSquares
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.quadratic import Quadratic

KINDS = {
    "quadratic": Quadratic(dimension=5, samples_per_client=13, size_exponent=1.0),
    "least_squares": LeastSquares(dimension=5, samples_per_client=13, size_exponent=1.0, l2=0.3),
    "logistic": Logistic(dimension=5, samples_per_client=13, size_exponent=1.0, test_samples=7),
}
LINEAR = ("least_squares", "logistic")
CLIENTS = 4


@pytest.fixture(params=KINDS)
def task(request):
    return KINDS[request.param].build(CLIENTS, 3, torch.float64)


def draws_of(task, m, local=LocalWork(steps=3, batch_size=4)):  # noqa: B008
    return task.draws(m, generator(0, "local", 0, m), local)


def points(seed, *shape):
    return torch.from_numpy(generator(seed, "test").standard_normal(shape))


def close(a, b, tol=1e-12):
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=tol, atol=tol)


def test_gradient_and_hvp_are_those_of_value(task):
    oracle = task.oracle()
    x, v = points(1, 5), points(2, 5)
    for m in range(CLIENTS):
        oracle.enter([m])
        oracle.at([draws_of(task, m)[1]])
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(oracle.value(z).sum(), z, create_graph=True)
        (h,) = torch.autograd.grad((g * v).sum(), z)
        assert close(oracle.grad(x), g.detach())
        assert close(oracle.hvp(x, v), h)
        assert oracle.value(x).shape == (1,)
        assert oracle.loss.tolist() == pytest.approx([float(oracle.value(x))], rel=1e-14)
        assert oracle.calls == 1


def test_whole_gradient_is_the_mean_over_all_batches(task):
    task.sigma = 0.0  # a full batch of a quadratic is noisy too
    oracle, x = task.oracle(), points(1, 5)
    for m in range(CLIENTS):
        oracle.enter([m])
        oracle.at([draws_of(task, m, LocalWork(steps=1, batch_size=None))[0]])
        assert close(oracle.full_grad(x), oracle.grad(x).clone())
        assert close(oracle.full_value(x), oracle.value(x))


def test_a_stack_is_its_clients_one_by_one_and_shrinks(task):
    ids = [2, 0, 3]
    x, v = points(1, 3, 5), points(2, 3, 5)
    draws = [draws_of(task, m) for m in ids]
    stack, alone = task.oracle(), task.oracle()
    stack.enter(ids)
    losses = torch.zeros(3, dtype=torch.float64)
    for k, left in ((0, 3), (1, 2), (2, 1)):
        stack.at([draws[i][k] for i in range(left)])
        rows = slice(left)
        grads, hvps = stack.grad(x[rows]).clone(), stack.hvp(x[rows], v[rows]).clone()
        values, fulls = stack.value(x[rows]).clone(), stack.full_grad(x[rows]).clone()
        assert values.shape == (left, 1)
        for i in range(left):
            alone.enter([ids[i]])
            alone.at([draws[i][k]])
            assert close(grads[i], alone.grad(x[i]).clone())
            assert close(hvps[i], alone.hvp(x[i], v[i]).clone())
            assert close(values[i], alone.value(x[i]).clone())
            assert close(fulls[i], alone.full_grad(x[i]).clone())
            assert close(stack.full_value(x[rows])[i], alone.full_value(x[i]))
            losses[i] += alone.loss[0]
    assert close(stack.loss, losses)
    assert stack.calls == 3


@pytest.mark.parametrize("name", LINEAR)
def test_autograd_gives_the_same_numbers(name):
    task = KINDS[name].build(CLIENTS, 3, torch.float64)
    closed, auto = task.oracle("closed_form"), task.oracle("autograd")
    assert type(task.oracle("auto")) is type(closed) is not type(auto)
    for m in range(CLIENTS):
        x, v = 3 * points(10 + m, 5), points(20 + m, 5)
        for oracle in (closed, auto):
            oracle.enter([m])
            oracle.at([draws_of(task, m)[2]])
        assert close(closed.grad(x), auto.grad(x).clone())
        assert close(closed.value(x), auto.value(x))
        assert close(closed.hvp(x, v), auto.hvp(x, v))
        assert close(closed.full_grad(x), auto.full_grad(x))
        assert close(closed.full_value(x), auto.full_value(x))


def test_logistic_loss_far_from_zero_keeps_its_tail():
    task = KINDS["logistic"].build(CLIENTS, 3, torch.float64)
    x, (closed, auto) = 300 * points(1, 5), (task.oracle("closed_form"), task.oracle("autograd"))
    for oracle in (closed, auto):
        oracle.enter([0])
        oracle.at([torch.arange(4)])
    assert close(closed.value(x), auto.value(x), 1e-14)


def test_regrouped_clients_keep_the_l2_term():
    task = KINDS["logistic"].build(CLIENTS, 3, torch.float64)
    both, x = task.regroup([[0, 1], [2, 3]]), points(1, 5)
    assert both.sizes.tolist() == [task.sizes[:2].sum(), task.sizes[2:].sum()]
    oracle, parts = both.oracle(), task.oracle()
    oracle.enter([0])
    expected = torch.zeros(5, dtype=torch.float64)
    for m in (0, 1):
        parts.enter([m])
        expected += parts.full_grad(x) * (task.sizes[m] / task.sizes[:2].sum())
    assert close(oracle.full_grad(x), expected)


def test_a_task_travels_to_another_process(task):
    before, x = task.evaluate(points(1, 5)), points(2, 5)
    copy = pickle.loads(pickle.dumps(task))
    assert copy.evaluate(points(1, 5)) == before
    oracles = [t.oracle() for t in (task, copy)]
    for oracle in oracles:
        oracle.enter([1])
        oracle.at([draws_of(task, 1)[0]])
    assert torch.equal(oracles[0].grad(x), oracles[1].grad(x))


def test_unknown_oracles_are_refused(task):
    with pytest.raises(ConfigError, match=r"^oracle: found 'closed_from'; allowed: one of .*did you mean closed_form"):
        task.oracle("closed_from")
    if not hasattr(task, "model"):
        with pytest.raises(ConfigError, match="no network"):
            task.oracle("autograd")


