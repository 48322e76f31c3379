"""Example curricula: which samples a client sees when, and the same ones wherever it works."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import blobs, experiment, play
from torch.nn import functional as F

import fedlearn
from fedlearn.combinations import modified
from fedlearn.errors import ConfigError
from fedlearn.modifiers.example_curriculum import ExampleCurriculum
from fedlearn.modifiers.gradient_noise import GradientNoise
from fedlearn.modifiers.on_task import Worded
from fedlearn.pacing import SHAPES, Pacing
from fedlearn.policies.local_work import LocalWork
from fedlearn.seeds import generator
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.quadratic import Quadratic


@pytest.mark.parametrize("shape", SHAPES)
def test_pacing_is_that_of_the_paper(shape: str) -> None:
    N, T, a, b = 1000, 40, 0.5, 0.1
    s = b * N
    formulas = {"linear": lambda t: s + (N - s) / (a * T) * t, "quad": lambda t: (N - s) * (t / (a * T)) ** 2 + s,
                "sqrt": lambda t: (N - s) * (t / (a * T)) ** 0.5 + s, "step": lambda t: N * (t // (a * T)) + s,
                "exp": lambda t: s + (N - s) * (math.exp(10 * t / (a * T)) - 1) / (math.exp(10) - 1),
                "log": lambda t: s + (N - s) * (1 + 0.1 * math.log(t / (a * T) + math.exp(-10)))}
    for t in range(T):
        expected = max(1, min(N, formulas[shape](t)))
        assert abs(Pacing(shape, a, b).available(N, t, T) - expected) <= 1, t
    assert Pacing(shape, a, b).available(N, T, T) == N and Pacing("step", a, 0.001).available(10, 0, T) == 1


def plan(order: str, n: int, steps: int, batch: int, **more: Any) -> list[list[int]]:
    """Return the mini-batches of samples whose losses fall with their numbers: the last one is the easiest."""
    rule = ExampleCurriculum(order, **more)
    return [b.tolist() for b in rule.mini_batches(-torch.arange(float(n)), Worded([None] * steps, 7, 0, batch))]


def test_passes_over_a_growing_part_of_the_order() -> None:
    batches = plan("curr", 100, 20, 10, least=1, full=1.0)
    first, second = batches[:2], batches[2:5]      # 20 samples at t = 0, 20 + 80 * 2 / 20 = 28 at t = 2
    assert sorted(sum(first, [])) == list(range(80, 100)) and sorted(sum(second, [])) == list(range(72, 100))
    assert [len(b) for b in second] == [10, 10, 8] and len(batches) == 20
    assert min(sum(batches[:10], [])) > min(sum(batches, [])) >= 0
    assert sorted(sum(plan("anti", 100, 20, 10, least=1)[:2], [])) == list(range(20))


def test_at_least_some_samples_and_at_most_all() -> None:
    assert sorted(sum(plan("curr", 100, 4, 10)[:4], [])) == list(range(68, 100))     # 32 of them in 4 batches
    assert sorted(plan("curr", 5, 1, 20)[0]) == [0, 1, 2, 3, 4]
    assert all(sorted(batch) == list(range(50)) for batch in plan("anti", 50, 3, 50, start=1.0))


def test_rand_is_paced_and_shuffled() -> None:
    batches = plan("rand", 200, 40, 10, least=1)
    pool = sorted(sum(batches[:4], []))
    assert len(set(pool)) == 40 and pool not in (list(range(40)), list(range(160, 200)))


@pytest.mark.parametrize("order", ["curr", "anti"])
def test_clients_train_on_what_the_received_model_finds_easy_or_hard(order: str) -> None:
    """Against a transcription of a whole round, from the losses of single samples."""
    task = blobs((50, 80), dtype=torch.float64)
    history = fedlearn.run(algorithm=fedlearn.FedAvg(lr=0.1), task=task, rounds=1, progress="none", stack=False,
                           local=LocalWork(epochs=2, batch_size=8),
                           modifiers={"c": ExampleCurriculum(order, least=1)})
    ends, x0 = [], task.initial(0)
    for m, n in enumerate((50, 80)):
        steps = 2 * -(-n // 8)
        rng = generator(0, "local", 0, m)
        task.draws(m, rng, LocalWork(epochs=2, batch_size=8))
        stream = generator(int(rng.integers(2**63)), "curriculum")
        xs, ys = task.store.client(m)
        oracle = task.oracle("autograd")
        oracle.enter([m])
        losses = []
        for i in range(n):
            oracle.at([torch.tensor([i])])
            losses.append(float(oracle.value(x0)))
        ranked = sorted(range(n), key=lambda i, losses=losses: losses[i] if order == "curr" else -losses[i])
        y, t, taken = x0.clone(), 0, 0
        while t < steps:
            pool = np.array(ranked[:max(1, int(0.2 * n + 0.8 * n * min(1, t / (0.8 * steps)) + 1e-9))])
            mixed = stream.permutation(pool)
            for start in range(0, len(mixed), 8):
                if t < steps:
                    oracle.at([torch.from_numpy(mixed[start:start + 8])])
                    y = y - 0.1 * oracle.grad(y)
                    t, taken = t + 1, taken + len(mixed[start:start + 8])
        ends.append(y)
        assert len(xs) == len(ys) == n and taken > n
    expected = (50 * ends[0] + 80 * ends[1]) / 130
    torch.testing.assert_close(history.x, expected, rtol=1e-11, atol=1e-12)


def test_scores_are_the_losses_of_single_samples_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.9), torch.nn.Linear(8, 3))
    store = blobs((30,)).store
    from fedlearn.tasks.supervised import SupervisedTask
    task = SupervisedTask(model, "cross_entropy", store)
    losses = task.sample_losses(0, task.initial(0))
    xs, ys = store.client(0)
    expected = F.cross_entropy(model.eval()(xs.float()), ys, reduction="none")
    torch.testing.assert_close(losses, expected.detach())
    linear = Logistic(dimension=4).build(2, 0, torch.float64)
    xs, ys = linear.store.client(1)
    x = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(linear.sample_losses(1, x), F.softplus(xs @ x) - ys * (xs @ x))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("local", [LocalWork(epochs=2, batch_size=8), LocalWork(steps=5, batch_size=8)])
def test_alone_and_stacked_alike(dtype: torch.dtype, rtol: float, local: LocalWork) -> None:
    rules = {"c": ExampleCurriculum(least=4), "noise": GradientNoise(0.1)}
    for algorithm in (fedlearn.FedAvg(), fedlearn.Scaffold(option="I")):
        _, task = modified(algorithm, blobs(dtype=dtype), rules)
        runs = [play(experiment(algorithm, 3, task=task, local=local, stack=stack))[0] for stack in (False, True)]
        assert float((runs[0] - runs[1]).norm() / runs[0].norm()) < rtol


def test_none_is_the_task_as_it_is_and_the_others_differ() -> None:
    hashes = []
    for rules in ({}, *({"c": ExampleCurriculum(order, least=1)} for order in ("none", "rand", "curr", "anti"))):
        hashes.append(fedlearn.run(algorithm=fedlearn.FedAvg(), task=blobs(), rounds=2, progress="none",
                                   local=LocalWork(epochs=2, batch_size=5), modifiers=rules).sha256)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


@pytest.mark.parametrize("algorithm", [fedlearn.FedBuff(), fedlearn.DSGD(), fedlearn.MinibatchSGD()],
                         ids=lambda a: type(a).__name__)
def test_other_protocols_run_with_it(algorithm: Any) -> None:
    given = {"algorithm": algorithm, "rounds": 2, "progress": "none", "modifiers": {"c": ExampleCurriculum()}}
    assert fedlearn.run(**given, task=blobs()).sha256 == fedlearn.run(**given, task=blobs()).sha256


def test_what_has_no_samples_or_needs_all_of_them_is_refused() -> None:
    with pytest.raises(ConfigError, match="example_curriculum: .*QuadraticTask have no samples"):
        fedlearn.run(algorithm=fedlearn.FedAvg(), task=Quadratic().build(2, 0, torch.float64), rounds=1,
                     modifiers={"c": ExampleCurriculum()}, progress="none")
    with pytest.raises(ConfigError, match="example_curriculum: .*none with protocol=coded"):
        fedlearn.run(algorithm=fedlearn.GradientCoding(), task=blobs((10,) * 6), rounds=1, progress="none",
                     modifiers={"c": ExampleCurriculum()})


@pytest.mark.parametrize(("field", "value"), [("order", "easy"), ("pacing", "fast"), ("full", 0), ("start", 1.5),
                                              ("least", 0)])
def test_what_is_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as e:
        ExampleCurriculum(**{field: value})
    assert e.value.key == field


def test_an_objective_of_representations_sees_the_ordered_samples_and_the_noise() -> None:
    from fedlearn.algorithms.moon import Moon

    def sha(**rules: Any) -> str:
        return fedlearn.run(algorithm=Moon(lr=0.1), task=blobs(), rounds=2, progress="none", stack=False,
                            local=LocalWork(epochs=1, batch_size=5), modifiers=rules).sha256

    order, noise = ExampleCurriculum("anti", least=1), GradientNoise(0.1)
    assert len({sha(), sha(order=order), sha(noise=noise), sha(order=order, noise=noise)}) == 4
    assert sha(noise=GradientNoise(0.0)) == sha()
