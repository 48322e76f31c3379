"""The dense oracle against autograd, and what its bits may depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles.nets import ACTIVATIONS, OUTPUTS, SIZES, far, federation, net
from problems import experiment, play, setup_of
from torch import Tensor, nn
from torch.utils.data import Dataset

from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.draws import Draws
from fedlearn.errors import ClientError
from fedlearn.oracles import dense
from fedlearn.oracles.dense import Dense
from fedlearn.policies.local_work import LocalWork
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.work import Work
from fedlearn.worker.worker import Worker

CLOSE = {torch.float64: 1e-12, torch.float32: 1e-6}
CALLS = ("grad", "value", "hvp", "full_grad", "full_value")
DRAWS = {3: [0, 3, 2, 9, 8], 1: [1, 2], 0: [5], 5: [1, 2, 3, 4]}
LOCALS = {"epochs": LocalWork(epochs=2, batch_size=5), "steps": LocalWork(steps=4, batch_size=8),
          "whole": LocalWork(steps=3, batch_size=0)}
ALGORITHMS = [FedAvg(lr=0.2), MinibatchSGD(lr=0.2), FedProx(lr=0.2, mu=0.5), Scaffold(lr=0.1),
              Scaffold(lr=0.1, option="I"), FedAdam(lr=0.1, server_lr=0.05)]


def call(oracle: Any, name: str, x: Tensor, v: Tensor) -> Tensor:
    return (oracle.hvp(x, v) if name == "hvp" else getattr(oracle, name)(x)).clone()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", OUTPUTS)
def test_equals_autograd_alone_and_in_a_shrinking_stack(loss: str, activation: str, bias: bool) -> None:
    task = federation(net(OUTPUTS[loss], activation, bias), loss, OUTPUTS[loss])
    plain, alone, stack = task.oracle("autograd"), task.oracle("dense"), task.oracle("dense")
    ids, draws = list(DRAWS), [torch.tensor(d) for d in DRAWS.values()]
    stack.room(5)
    stack.enter(ids)
    g = torch.Generator().manual_seed(1)
    sums = torch.zeros(len(ids), dtype=torch.float64)
    for left in (4, 3, 1):
        x = task.initial(0) + 0.1 * torch.randn(left, task.x0.numel(), generator=g, dtype=torch.float64)
        v, before = torch.randn(x.shape, generator=g, dtype=torch.float64), x.clone()
        stack.at(draws[:left])
        stacked = {name: call(stack, name, x, v) for name in CALLS}
        for i in range(left):
            for oracle in (plain, alone):
                oracle.enter([ids[i]])
                oracle.at([draws[i]])
            for name in CALLS:
                expected = call(plain, name, x[i], v[i])
                single = call(alone, name, x[i], v[i])
                assert single.shape == expected.shape and stacked[name][i].shape == expected.shape
                assert far(single, expected) < 1e-12 and far(stacked[name][i], expected) < 1e-12, name
            assert far(alone.loss, plain.loss) < 1e-6
            sums[i] += plain.loss[0]
        assert torch.equal(x, before)
    assert far(stack.loss, sums) < 1e-6 and stack.calls == 3


@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 3), ("binary_cross_entropy", 1), ("squared", 1),
                                               ("binary_cross_entropy", 3)])
def test_one_layer_is_softmax_regression_logistic_regression_and_least_squares(loss: str, outputs: int) -> None:
    task = federation(nn.Sequential(nn.Linear(6, outputs)), loss, outputs)
    oracles = [task.oracle(kind) for kind in ("dense", "autograd")]
    x, v = task.initial(0), torch.linspace(-1, 1, task.x0.numel(), dtype=torch.float64)
    for oracle in oracles:
        oracle.enter([3])
        oracle.at([torch.tensor([4, 5, 0])])
    for name in CALLS:
        one, other = (call(oracle, name, x, v) for oracle in oracles)
        assert far(one, other) < 1e-12, name


def test_huge_scores_are_no_problem() -> None:
    for loss, outputs in (("cross_entropy", 3), ("binary_cross_entropy", 1)):
        task = federation(net(outputs), loss, outputs, torch.float32)
        x = 100 * task.initial(0)
        oracles = [task.oracle(kind) for kind in ("dense", "autograd")]
        for oracle in oracles:
            oracle.enter([3])
            oracle.at([torch.arange(40)])
        ours, theirs = (torch.cat([oracle.value(x), oracle.grad(x)]) for oracle in oracles)
        assert ours.isfinite().all() and far(ours, theirs) < 1e-5


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: f"{type(a).__name__}{getattr(a, 'option', '')}")
@pytest.mark.parametrize("dtype", CLOSE)
def test_whole_runs_equal_those_of_autograd(dtype: torch.dtype, algorithm: Any, stack: bool) -> None:
    for name, local in LOCALS.items():
        task = federation(net(3, "tanh"), dtype=dtype)
        (x, reports), (expected, others) = (
            play(experiment(algorithm, 6, task=task, local=local, cohort=5, oracle=oracle, stack=stacked))
            for oracle, stacked in (("dense", stack), ("autograd", False)))
        assert far(x, expected) < CLOSE[dtype], name
        assert not torch.equal(x, task.initial(0))
        losses, theirs = ([r.loss for report in of for r in report.records] for of in (reports, others))
        assert losses == pytest.approx(theirs, rel=1e-5)


def uploads(task: SupervisedTask, groups: list[list[int]], local: LocalWork, stack: bool) -> dict[int, Tensor]:
    """What each client sends, run by one worker group after group."""
    e = experiment(Scaffold(lr=0.3, option="I"), task=task, local=local)
    worker = Worker(replace(setup_of(e), oracle="dense", stack=stack))
    x = task.initial(0)
    sent = {}
    for ids in groups:
        work = Work(0, 0, {"x": x, "c": 0.01 * x.sin()}, ids, [1.0] * len(ids), local)
        for client, msg, _ in worker.replies(work, ids):
            sent[client] = torch.cat([msg["dx"], msg["dc"]])
    return sent


SHAPES = {"softmax": lambda: nn.Linear(6, 3), "one output": lambda: nn.Linear(6, 1), "mlp": lambda: net(3, "tanh"),
          "sigmoid": lambda: nn.Sequential(nn.Linear(6, 33), nn.Sigmoid(), nn.Linear(33, 3)),
          "wide": lambda: nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 10))}


@pytest.mark.parametrize("local", LOCALS.values(), ids=LOCALS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", CLOSE)
def test_the_bits_of_a_client_do_not_depend_on_who_is_in_its_stack(dtype: torch.dtype, shape: str,
                                                                  local: LocalWork) -> None:
    model = SHAPES[shape]()
    loss, outputs = ("binary_cross_entropy", 1) if shape == "one output" else ("cross_entropy", 3)
    task = federation(model, loss, outputs, dtype, sizes=(*SIZES, 40, 3, 9, 31, 2, 17, 6, 25))
    everybody = list(range(len(task.sizes)))
    together = uploads(task, [everybody], local, True)
    for groups in ([[m] for m in everybody], [everybody[:2], everybody[2:9], everybody[9:]],
                   [everybody[::2], everybody[1::2]]):
        apart = uploads(task, groups, local, True)
        assert all(torch.equal(apart[m], together[m]) for m in everybody)


def test_a_stack_has_room_for_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    task = federation(net(3))
    whole = uploads(task, [list(range(7))], LOCALS["epochs"], True)
    oracle = task.oracle("dense")
    fits = oracle.room(5)
    assert fits > 1000 > oracle.room(5000) > oracle.room(100_000) == 4
    monkeypatch.setitem(dense.STACK_BYTES, "cpu", dense.STACK_BYTES["cpu"] // fits * 5)
    assert oracle.room(5) == 5
    split = uploads(task, [list(range(7))], LOCALS["epochs"], True)
    assert all(torch.equal(split[m], whole[m]) for m in range(7))


@pytest.mark.parametrize("dtype", CLOSE)
def test_alone_the_bits_do_not_depend_on_addresses(dtype: torch.dtype) -> None:
    task = federation(SHAPES["wide"](), outputs=3, dtype=dtype)
    oracle = task.oracle("dense")
    oracle.enter([3])
    oracle.at([torch.arange(17)])
    x = task.initial(0)
    results = []
    for shift in range(0, 17, 3):
        place = torch.zeros(len(x) + 32, dtype=dtype)[shift:shift + len(x)]
        place.copy_(x)
        results.append(torch.cat([oracle.grad(place), oracle.full_grad(place)]))
        # A step in place is seen, also through a copy.
        place.add_(1)
        assert not torch.equal(oracle.grad(place), results[0][:len(x)])
    strided = torch.stack([x, x], 1)[:, 0]
    assert not strided.is_contiguous()
    results.append(torch.cat([oracle.grad(strided), oracle.full_grad(strided)]))
    assert all(torch.equal(r, results[0]) for r in results)


def test_gathering_ahead_changes_nothing() -> None:
    task = federation(net(3))
    draws = [torch.tensor([3, 1, 7]), torch.tensor([0, 2, 11]), torch.tensor([5])]
    for planned in (draws, [torch.arange(40)] * 3):
        one, other = task.oracle("dense"), task.oracle("dense")
        one.enter([3], [planned])
        other.enter([3])
        x = task.initial(0)
        for draw in planned:
            for oracle in (one, other):
                oracle.at([draw])
            assert far(one.grad(x), other.grad(x)) < 1e-15
        assert far(one.loss, other.loss) < 1e-14
    one.enter([3], [draws])
    one.at([torch.tensor([8, 9])])      # not as announced
    other.enter([3])
    other.at([torch.tensor([8, 9])])
    assert torch.equal(one.grad(x), other.grad(x))


def test_the_whole_gradient_leaves_the_mini_batch_and_its_losses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "FULL_BATCH", 16)
    task = federation(net(3))
    oracle, plain = task.oracle("dense"), task.oracle("autograd")
    x = task.initial(0)
    for o in (oracle, plain):
        o.enter([3])
        o.at([torch.tensor([0, 39])])
    first = oracle.grad(x).clone()
    loss = oracle.loss.clone()
    assert far(oracle.full_grad(x), plain.full_grad(x)) < 1e-13
    assert torch.equal(oracle.loss, loss)
    assert torch.equal(oracle.grad(x), first)


def test_a_step_allocates_nothing_of_the_size_of_the_model() -> None:
    task = federation(nn.Sequential(nn.Linear(6, 3000), nn.ReLU(), nn.Linear(3000, 3)), dtype=torch.float32)
    oracle = task.oracle("dense")
    x = task.initial(0)
    draws = Draws(np.array([0, 1, 2, 3, 4, 5]), [2, 2, 2])
    oracle.enter([3], [draws])
    for draw in draws[:2]:
        oracle.at([draw])
        oracle.grad(x)
    oracle.at([draws[2]])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        oracle.grad(x)
    assert max(event.cpu_memory_usage for event in profile.events()) < 4 * len(x) / 10


class Samples(Dataset):
    """One client's samples as a map-style data set."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


@pytest.mark.parametrize("stack", [False, True])
def test_data_sets_and_features_of_another_type_are_served_too(stack: bool) -> None:
    task = federation(net(3), dtype=torch.float64)
    clients = [task.store.client(m) for m in range(len(task.sizes))]
    sets = SupervisedTask(net(3), "cross_entropy", [Samples(x, y) for x, y in clients], None, torch.float64)
    rough = SupervisedTask(net(3), "cross_entropy", [(x.float(), y) for x, y in clients], None, torch.float64)
    fine = SupervisedTask(net(3), "cross_entropy", [(x.float().double(), y) for x, y in clients], None, torch.float64)
    for one, other in ((sets, task), (rough, fine)):
        other.x0, one.x0 = task.x0, task.x0
        (x, _), (expected, _) = (play(experiment(FedAvg(lr=0.1), 2, task=t, local=LOCALS["epochs"], oracle="dense",
                                                 stack=stack)) for t in (one, other))
        assert isinstance(one.oracle(), Dense) and torch.equal(x, expected)


def test_labels_that_are_no_classes_are_named() -> None:
    task = federation(net(3))
    task.store.labels[60] = -100
    with pytest.raises(ClientError, match="labels from -100 to 2; allowed: 0 to 2 with oracle=dense"):
        play(experiment(FedAvg(), 1, task=task, oracle="dense"))
