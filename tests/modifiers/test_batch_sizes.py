"""Batches that grow by the norm test, and the rules that scale step sizes with them."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from problems import begin, blobs, experiment, play

import fedlearn
from fedlearn.algorithms.local_adam import LocalAdam
from fedlearn.combinations import modified
from fedlearn.errors import ConfigError
from fedlearn.modifiers.batch_scaling import BatchScaling
from fedlearn.modifiers.norm_test import NormTest
from fedlearn.policies.local_work import LocalWork, RoundWork
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.seeds import generator
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.quadratic import Quadratic


def quadratic(samples: int = 400, sigma: float = 10.0) -> Any:
    return Quadratic(dimension=4, sigma=sigma, samples_per_client=samples).build(4, 0, torch.float64)


def train(test: NormTest | None = None, rounds: int = 12, algorithm: Any = None, **more: Any) -> Any:
    given = {"algorithm": algorithm or fedlearn.FedAvg(lr=0.05), "task": quadratic(), "rounds": rounds,
             "local": LocalWork(steps=32, batch_size=4), "progress": "none", "stack": False}
    return fedlearn.run(**(given | more), modifiers={"norm_test": test} if test else {})


def sizes(history: Any) -> list[float]:
    return [line["batch_size"] for line in history.metrics[1:]]


@pytest.mark.parametrize("test", ["local", "global"])
@pytest.mark.parametrize(("scaling", "power"), [("none", 0.0), ("sqrt", 0.5), ("linear", 1.0)])
def test_a_run_is_the_equations_of_the_paper(test: str, scaling: str, power: float) -> None:
    """Against a transcription: batches of every round, steps, step sizes and the model."""
    task, lr, eta, b_max = quadratic(), 0.05, 0.6, 40
    history = train(NormTest(test, eta, b_max, 2, True, scaling), task=task, weighting=UniformWeighting())
    A, optima = task.A.numpy(), task.optima.numpy()
    x, b, used, before = np.zeros(4), 4, [], 0
    for r in range(12):
        steps = max(2, round(32 * 4 / b))
        used.append(b)
        ends, noises, gradients, norms = [], [], [], []
        for m in range(4):
            draws = task.draws(m, generator(0, "local", r, m), RoundWork(steps=steps, batch_size=b))
            g0, g1 = (A[m] @ (x - optima[m]) + draws[k].numpy() for k in (0, 1))
            noises.append(((g0 - g1) ** 2).sum() / 2)
            gradients.append((g0 + g1) / 2)
            norms.append(((g0**2).sum() + (g1**2).sum()) / 2)
            y = x.copy()
            for k in range(steps):
                y = y - lr * (b / 4) ** power * (A[m] @ (y - optima[m]) + draws[k].numpy())
            ends.append(y)
        x, before = np.mean(ends, axis=0), before + steps
        if r % 2 == 0:
            square = np.mean(norms) if test == "local" else 4 * (np.mean(gradients, axis=0) ** 2).sum()
            b = max(b, min(b_max, ceil(b * np.mean(noises) / (eta**2 * square))))
    assert sizes(history) == used and len(set(used)) > 2
    np.testing.assert_allclose(history.x.numpy(), x, rtol=1e-10)


def test_the_estimate_is_the_variance_of_a_sample() -> None:
    """With sigma^2 the variance of one sample, b is sigma^2 / (eta^2 G) on average; G is known far from the optimum."""
    task = Quadratic(dimension=4, sigma=30.0, B=100.0, samples_per_client=10**6).build(4, 0, torch.float64)
    G = np.mean([float((task.A[m] @ task.optima[m]).square().sum()) for m in range(4)])
    eta = (900 / (50 * G)) ** 0.5
    found = []
    for seed in range(40):
        algorithm, _ = modified(fedlearn.FedAvg(lr=1e-9), task, {"t": NormTest(eta=eta)})
        e = experiment(algorithm, 1, task=task, seed=seed, local=LocalWork(steps=64, batch_size=8))
        loop, workers = begin(e)
        loop.round(0)
        found.append(float(loop.server.own.size))   # type: ignore[attr-defined]
        workers.close()
    # G of a batch holds its noise, 900 / 8, too.
    expected = 50 * G / (G + 900 / 8)
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 40**0.5 + 0.5


def test_batches_never_shrink_and_are_smaller_for_larger_eta() -> None:
    ends = []
    for eta in (0.25, 0.4, 0.6):
        found = sizes(train(NormTest(eta=eta, b_max=3000, keep_samples=False), task=quadratic(10**6)))
        assert found[0] == 4 and found == sorted(found) and max(found) <= 3000
        ends.append(found[-1])
    assert ends[0] > ends[1] > ends[2] > 4


def test_rounds_keep_their_samples_or_their_steps() -> None:
    def steps(**more: Any) -> list[int]:
        lines: list[int] = []
        algorithm, task = modified(fedlearn.FedAvg(lr=0.05), quadratic(), {"t": NormTest(b_max=1000, **more)})
        for report in play(experiment(algorithm, 8, task=task, local=LocalWork(steps=32, batch_size=4)))[1]:
            batch = int(report.extra["batch_size"])
            taken = {record.steps for record in report.records}
            assert len(taken) == 1
            lines.append(taken.pop() * (batch if more.get("keep_samples", True) else 1))
        return lines

    kept = steps()
    assert kept[0] == 128 and all(abs(n - 128) <= 64 for n in kept) and kept[-1] == 128   # K = 2, b = 64 at the end
    assert steps(keep_samples=False) == [32] * 8


def test_by_epochs_a_client_of_one_batch_has_no_noise() -> None:
    task = blobs((30, 30, 30), dtype=torch.float64)
    history = train(NormTest(eta=0.1), 5, task=task, local=LocalWork(epochs=1, batch_size=30))
    assert sizes(history) == [30] * 5
    grown = sizes(train(NormTest(eta=0.1), 5, task=task, local=LocalWork(epochs=1, batch_size=5)))
    assert grown[0] == 5 < grown[-1]


def test_a_gradient_of_zero_leaves_the_batch() -> None:
    task = Quadratic(dimension=4, sigma=0.0, zeta_star=0.0, tau=0.0, B=0.0).build(2, 0, torch.float64)
    assert sizes(train(NormTest(), 3, task=task)) == [4, 4, 4]


def test_what_is_sent_and_that_other_rounds_send_nothing() -> None:
    plain = train().metrics[1]["bytes_up"]
    assert plain == 4 * 4 * 8
    for test, floats in (("local", 2), ("global", 5)):
        up = [line["bytes_up"] - plain for line in train(NormTest(test, interval=3), 4).metrics[1:]]
        assert up == [4 * 8 * floats, 0, 0, 4 * 8 * floats]


@pytest.mark.parametrize("algorithm", [fedlearn.FedAvg(lr=0.05), fedlearn.Scaffold(lr=0.05), fedlearn.FedAdam(lr=0.05)],
                         ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_alone_and_stacked_alike(algorithm: Any, dtype: torch.dtype, rtol: float) -> None:
    for test in ("local", "global"):
        changed, task = modified(algorithm, blobs(dtype=dtype), {"t": NormTest(test, 0.2, scaling="sqrt")})
        for local in (LocalWork(epochs=1, batch_size=4), LocalWork(steps=6, batch_size=3)):
            runs = [play(experiment(changed, 3, task=task, local=local, stack=stack)) for stack in (False, True)]
            found = [[report.extra["batch_size"] for report in reports] for _, reports in runs]
            assert found[0] == found[1] and found[0][-1] > found[0][0]
            assert float((runs[0][0] - runs[1][0]).norm() / runs[0][0].norm()) < rtol


def test_resumes_with_the_batch_that_it_had(tmp_path: Any) -> None:
    whole = train(NormTest(scaling="linear", b_max=16), 9)
    train(NormTest(scaling="linear", b_max=16), 4, folder=tmp_path / "run", checkpoint_every=2)
    assert train(NormTest(scaling="linear", b_max=16), 9, folder=tmp_path / "run", resume=True).sha256 == whole.sha256


def test_learns_on_data_in_fewer_steps() -> None:
    task = Logistic(dimension=10, samples_per_client=300).build(4, 0, torch.float64)
    taken, losses = [], []
    for test in (None, NormTest(eta=0.5, scaling="sqrt")):
        algorithm, _ = modified(fedlearn.FedAvg(lr=0.1), task, {"t": test} if test else {})
        x, reports = play(experiment(algorithm, 15, task=task, local=LocalWork(steps=64, batch_size=4)))
        taken.append(sum(report.records[0].steps for report in reports))
        losses.append(task.evaluate(x)["suboptimality"])
    assert taken[1] < taken[0] / 3 and losses[1] < task.evaluate(task.initial(0))["suboptimality"] / 3


@pytest.mark.parametrize(("local", "key"), [
    (LocalWork(steps=1, batch_size=4), "local.steps"), (LocalWork(steps=4, batch_size=None), "local.batch_size")])
def test_work_that_cannot_be_tested_is_refused(local: LocalWork, key: str) -> None:
    with pytest.raises(ConfigError) as e:
        train(NormTest(), 1, local=local)
    assert e.value.key == key and "norm_test" in str(e.value)


@pytest.mark.parametrize(("field", "value"), [("test", "both"), ("eta", 0), ("b_max", 0), ("interval", 0),
                                              ("scaling", "cube")])
def test_what_is_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as e:
        NormTest(**{field: value})
    assert e.value.key == field


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4), ("sqrt", 2)])
def test_a_rule_is_another_step_size(rule: str, factor: float) -> None:
    scaled = fedlearn.run(algorithm=fedlearn.FedAvg(lr=0.01), task=quadratic(), rounds=3, progress="none",
                          local=LocalWork(batch_size=20), modifiers={"s": BatchScaling(rule, 5, 20)})
    by_hand = fedlearn.run(algorithm=fedlearn.FedAvg(lr=0.01 * factor), task=quadratic(), rounds=3, progress="none",
                           local=LocalWork(batch_size=20))
    assert scaled.sha256 == by_hand.sha256


def test_the_rule_of_adam_changes_its_betas_and_eps_too() -> None:
    inner = BatchScaling("adam", 8, 32).around(LocalAdam(lr=0.01, beta1=0.95, beta2=0.99, lam=0.02)).inner  # type: ignore
    assert (inner.lr, inner.lam) == (0.02, 0.01)
    assert (inner.beta1, inner.beta2) == pytest.approx((0.8, 0.96), rel=1e-12)
    with pytest.raises(ConfigError, match="batch: found 200; allowed: less than base / .1 - beta1. = 160"):
        BatchScaling("adam", 8, 200).around(LocalAdam(beta1=0.95))
    for other in (fedlearn.FedAvg(), fedlearn.FedAdam()):
        with pytest.raises(ConfigError, match="rule: found 'adam'; allowed: linear or sqrt .*do not run Adam"):
            BatchScaling("adam").around(other)


def test_a_batch_that_is_not_the_runs_is_refused() -> None:
    with pytest.raises(ConfigError, match="local.batch_size: found 10; allowed: modifiers.batch_scaling.batch = 20"):
        fedlearn.run(algorithm=fedlearn.FedAvg(), task=quadratic(), rounds=1, progress="none",
                     local=LocalWork(batch_size=10), modifiers={"s": BatchScaling()})


def test_local_steps_are_counted_as_they_were_taken() -> None:
    algorithm, task = modified(fedlearn.FedAvg(lr=0.05), quadratic(), {"t": NormTest()})
    e = experiment(algorithm, 5, task=task, local=LocalWork(steps=32, batch_size=4))
    loop, workers = begin(e)
    taken = 0
    for r in range(5):
        assert algorithm.plan(loop.server, e.plan(r)).before == taken    # type: ignore[attr-defined]
        taken += loop.round(r).records[0].steps
    assert taken < 5 * 32
    workers.close()
