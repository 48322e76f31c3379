"""Whole rounds through worker, protocol and backend, against what theory says of quadratics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import begin, experiment, play, setup_of

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import UniformSampling
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.tasks.least_squares import LeastSquares
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.quadratic import Quadratic, QuadraticTask
from fedlearn.vectors import tree_flat
from fedlearn.work import Work
from fedlearn.worker.worker import Worker

UNEQUAL = {"samples_per_client": 17, "size_exponent": 1.0, "dimension": 6}
KINDS = [Quadratic(**UNEQUAL), LeastSquares(**UNEQUAL), Logistic(**UNEQUAL)]
LOCAL = LocalWork(epochs=2, batch_size=5)


def plain_descent(task, eta, K, outer, rounds):
    """Noiseless Local GD in NumPy, from its definition."""
    A, o, p, x = task.A.numpy(), task.optima.numpy(), task.sizes / task.sizes.sum(), task.x0.numpy()
    for _ in range(rounds):
        ends = []
        for a, b in zip(A, o, strict=True):
            y = x
            for _ in range(K):
                y = y - eta * a @ (y - b)
            ends.append(y)
        x = x + outer * (sum(w * y for w, y in zip(p, ends, strict=True)) - x)
    return x


def fixed_point(task, eta, K):
    """x_inf = C^-1 sum p_m C_m o_m with C_m = I - (I - eta A_m)^K."""
    p, identity = task.sizes / task.sizes.sum(), np.eye(task.x0.numel())
    C = [w * (identity - np.linalg.matrix_power(identity - eta * a, K))
         for w, a in zip(p, task.A.numpy(), strict=True)]
    return np.linalg.solve(sum(C), sum(c @ o for c, o in zip(C, task.optima.numpy(), strict=True)))


def five_clients():
    """The example behind the headline figure of Patel et al., COLT 2024: x* = (11, 12)."""
    A = torch.stack([torch.diag(torch.tensor(d).double()) for d in ((1, 2), (1, 1), (6, 1), (4, 1), (3, 5))])
    optima = torch.tensor([(5, 5), (15, 5), (15, 10), (10, 20), (5, 15)]).double()
    return QuadraticTask(A, optima, torch.zeros(2).double())


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.2), Scaffold(lr=0.2), Scaffold(lr=0.2, option="I")])
@pytest.mark.parametrize("dials", KINDS, ids=lambda d: type(d).__name__)
def test_a_round_alone_is_a_round_stacked(dials, algorithm):
    e = experiment(algorithm, task=dials.build(7, 4, torch.float64), local=LOCAL, sampling=UniformSampling())
    alone, stacked = (Worker(replace(setup_of(e), stack=stack)) for stack in (False, True))
    server, versions = algorithm.server_init(e.task.initial(0)), {}
    found = []
    for r in range(2):  # the second round starts from the clients' states of the first
        broadcast = {name: v + 0.1 * r for name, v in algorithm.broadcast(server).items()}
        work = Work(r, r, broadcast, list(range(7)), [1.0] * 7, LOCAL, versions)
        one, many = ({m: (tree_flat(msg), record) for m, msg, record in w.replies(work, range(7))}
                     for w in (alone, stacked))
        assert set(one) == set(many) == set(range(7))
        for m in range(7):
            (a, first), (b, second) = one[m], many[m]
            assert a.keys() == b.keys()
            assert all(torch.allclose(a[name], b[name], rtol=1e-12, atol=1e-13) for name in a)
            assert (first.steps, first.samples, first.bytes_up) == (second.steps, second.samples, second.bytes_up)
            assert first.loss == pytest.approx(second.loss, rel=1e-12, abs=1e-13)
            found.append(first.steps)
            if first.state:
                one_state, other_state = (w.states.get(m, r) for w in (alone, stacked))
                assert torch.allclose(one_state, other_state, rtol=1e-12, atol=1e-13)
                assert other_state.untyped_storage().nbytes() == one_state.untyped_storage().nbytes()
        versions = {m: r for m in range(7) if one[m][1].state}
    assert len(set(found)) > 3


@pytest.mark.parametrize("outer", [1.0, 0.5])
@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_local_descent_converges_to_its_fixed_point(exponent, outer):
    dials = Quadratic(dimension=6, mu=0.2, tau=0.6, sigma=0.0, size_exponent=exponent)
    task, eta, K = dials.build(5, 1, torch.float64), 0.4, 5
    local = LocalWork(steps=K, batch_size=None)
    e = experiment(FedAvg(lr=eta, server_lr=outer), rounds=160, task=task, local=local)
    after_three, _ = play(e, last=3)
    assert np.abs(after_three.numpy() - plain_descent(task, eta, K, outer, 3)).max() < 1e-13
    x, _ = play(e)
    limit = fixed_point(task, eta, K)
    assert np.abs(x.numpy() - limit).max() < 1e-10
    assert np.linalg.norm(limit - task.optimum.numpy()) > 0.1  # which is not x*


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "K", "distance"), [
    (1 / 7, 1, 0.0), (1 / 7, 2, 0.649), (1 / 7, 10, 1.448), (1 / 7, 100, 1.414), (1 / 14, 2, 0.274),
    (1 / 700, 100, 0.419), (1 / 28, 2, 0.127), (1 / 700, 10, 0.0425)])
def test_the_headline_figure(lr, K, distance):
    task = five_clients()
    assert task.optimum.tolist() == pytest.approx([11, 12])
    rounds = 20 + int(13 / min(1, lr * K))
    x, _ = play(experiment(FedAvg(lr=lr), rounds=rounds, task=task, local=LocalWork(steps=K, batch_size=None)))
    found = task.evaluate(x)["distance"]
    assert found == pytest.approx(distance, rel=2e-3, abs=1e-8)
    assert found == pytest.approx(np.linalg.norm(fixed_point(task, lr, K) - [11, 12]), abs=1e-8)


@pytest.mark.parametrize("outer", [1.0, 2.0])
def test_two_clients_with_disjoint_coordinates(outer):
    H, eta, K, R, best = 2.0, 0.3, 4, 5, torch.tensor([3.0, -1.0]).double()
    A = torch.stack([torch.diag(torch.tensor([H, 0.0])), torch.diag(torch.tensor([0.0, H]))]).double()
    task = QuadraticTask(A, torch.stack([best, best]), torch.zeros(2).double())
    x, _ = play(experiment(FedAvg(lr=eta, server_lr=outer), rounds=R, task=task, local=LocalWork(steps=K)))
    closed = best * (1 - (1 - outer / 2 * (1 - (1 - eta * H) ** K)) ** R)
    assert torch.allclose(x, closed, rtol=1e-13, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_converges_to_the_optimum(option):
    dials = Quadratic(dimension=10, mu=0.2, tau=0.5, sigma=0.0)
    task, local = dials.build(8, 0, torch.float64), LocalWork(steps=10, batch_size=None)
    far, _ = play(experiment(FedAvg(lr=0.2), rounds=100, task=task, local=local))
    x, _ = play(experiment(Scaffold(lr=0.2, option=option), rounds=400, task=task, local=local))
    assert task.evaluate(far)["distance"] > 0.1
    assert task.evaluate(x)["distance"] < 1e-10


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("dials", KINDS, ids=lambda d: type(d).__name__)
def test_scaffold_keeps_c_the_mean_of_the_clients(dials, option):
    task = dials.build(7, 2, torch.float64)
    e = experiment(Scaffold(lr=0.1, option=option), rounds=12, task=task, cohort=3, local=LOCAL)
    loop, workers = begin(e)
    for r in range(e.rounds):
        report = loop.round(r)
        assert len({record.samples for record in report.records}) > 1 or len(report.records) == 1
        states = torch.zeros(7, task.x0.numel(), dtype=torch.float64)
        for m, version in loop.states():
            states[m] = workers.worker.states.get(m, version)
        assert float(loop.server.c.norm()) > 0
        assert torch.allclose(states.mean(0), loop.server.c, rtol=0, atol=1e-13 * float(states.abs().max()))
    assert len(loop.states()) > 3


@pytest.mark.parametrize("dials", KINDS, ids=lambda d: type(d).__name__)
def test_one_local_step_is_minibatch_sgd(dials):
    task = dials.build(7, 2, torch.float64)
    choices = {"rounds": 10, "task": task, "cohort": 3, "local": LocalWork(steps=1, batch_size=4)}
    one, _ = play(experiment(FedAvg(lr=0.3), **choices))
    other, _ = play(experiment(MinibatchSGD(lr=0.3), **choices))
    assert not torch.equal(one, task.initial(0))
    assert torch.allclose(one, other, rtol=1e-14, atol=1e-14)


def test_scaffold_minimises_the_plain_mean_over_clients_of_unequal_size():
    task = Quadratic(dimension=5, mu=0.3, tau=0.4, sigma=0.0, size_exponent=1.0).build(6, 0, torch.float64)
    plain = QuadraticTask(task.A, task.optima, task.x0)
    assert float((task.optimum - plain.optimum).norm()) > 0.01
    local = LocalWork(steps=4, batch_size=None)
    x, _ = play(experiment(Scaffold(lr=0.2), rounds=300, task=task, local=local, weighting=UniformWeighting()))
    assert plain.evaluate(x)["distance"] < 1e-10


@pytest.mark.parametrize("oracle", ["closed_form", "autograd"])
def test_the_oracle_can_be_chosen_for_a_run(oracle):
    task = Logistic(**UNEQUAL).build(7, 2, torch.float64)
    x, _ = play(experiment(FedAvg(lr=0.3), rounds=3, task=task, local=LOCAL, oracle=oracle))
    y, _ = play(experiment(FedAvg(lr=0.3), rounds=3, task=task, local=LOCAL, oracle="auto"))
    assert torch.allclose(x, y, rtol=1e-12, atol=1e-13)
