"""Gradient noise: the paper's variance, and the same draws wherever a client works."""

from __future__ import annotations

import pickle
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from problems import blobs, experiment, play

import fedlearn
from fedlearn.combinations import modified
from fedlearn.errors import ConfigError
from fedlearn.modifiers.gradient_noise import GradientNoise, NoisyTask
from fedlearn.policies.local_work import LocalWork, RoundWork
from fedlearn.seeds import generator
from fedlearn.tasks.quadratic import Quadratic


def quadratic(sigma: float = 1.0) -> Any:
    return Quadratic(dimension=6, sigma=sigma).build(4, 0, torch.float64)


def steps_of(task: Any, work: RoundWork, ids: list[int], seed: int = 0) -> list[torch.Tensor]:
    """Return the gradients at x = 1 of all steps of a round, [clients, P] each."""
    oracle = task.oracle()
    draws = [task.draws(m, generator(seed, "local", work.round, m), work) for m in ids]
    oracle.enter(ids, draws)
    x, found = torch.ones(len(ids), task.initial(0).numel(), dtype=task.initial(0).dtype), []
    for k in range(len(draws[0])):
        oracle.at([d[k] for d in draws])
        found.append(oracle.grad(x).clone())
    return found


def added(noise: GradientNoise, work: RoundWork, ids: list[int], seed: int = 0) -> list[torch.Tensor]:
    task = quadratic()
    pairs = zip(steps_of(noise.on(task), work, ids, seed), steps_of(task, work, ids, seed), strict=True)
    return [noisy - plain for noisy, plain in pairs]


def test_variance_falls_as_in_the_paper() -> None:
    noise, wide = GradientNoise(eta=0.3), Quadratic(dimension=500, sigma=0.0).build(2, 0, torch.float64)
    work = RoundWork(steps=3, before=40, round=8)
    pairs = zip(steps_of(noise.on(wide), work, [0]), steps_of(wide, work, [0]), strict=True)
    for k, (noisy, plain) in enumerate(pairs):
        one = (noisy - plain)[0]
        variance = 0.3 / (41 + k) ** 0.55
        assert float(one.square().mean()) == pytest.approx(variance, rel=5 * (2 / 500) ** 0.5)
        assert abs(float(one.mean())) < 5 * (variance / 500) ** 0.5


def test_scale_of_the_very_same_noise() -> None:
    work = RoundWork(steps=2, before=10, round=5)
    flat, annealed = (added(GradientNoise(1.0, gamma), work, [2]) for gamma in (0.0, 1.0))
    for k in range(2):
        torch.testing.assert_close(annealed[k] * (11 + k) ** 0.5, flat[k], rtol=1e-12, atol=1e-12)
    by_epoch = added(GradientNoise(1.0, 1.0), RoundWork(epochs=1, batch_size=50, round=5), [2])
    torch.testing.assert_close(by_epoch, annealed, rtol=1e-12, atol=1e-12)    # 100 samples are two steps a round


def test_keyed_by_seed_client_round_and_step_and_not_by_the_stack() -> None:
    noise = GradientNoise(1.0)

    def of(ids: list[int], round: int = 5, seed: int = 0) -> list[torch.Tensor]:
        return added(noise, RoundWork(steps=3, round=round, before=3 * round), ids, seed)

    stack = of([3, 0, 1])
    for place, m in enumerate((3, 0, 1)):
        assert all(torch.allclose(one[0], row[place], rtol=0, atol=1e-13)
                   for one, row in zip(of([m]), stack, strict=True))
    different = [*of([0]), *of([1]), *of([0], 6), *of([0], 5, 1)]
    assert len({round(float(v[0, 0]), 9) for v in different}) == 12


def test_mini_batches_stay_and_one_mini_batch_has_one_noise() -> None:
    task, work = quadratic(), RoundWork(steps=2)
    noisy = GradientNoise(1.0).on(task)
    draws = noisy.draws(1, generator(0, "local", 0, 1), work)
    for mine, plain in zip(draws, task.draws(1, generator(0, "local", 0, 1), work), strict=True):
        assert torch.equal(mine, plain)
    oracle, x = noisy.oracle(), torch.ones(6, dtype=torch.float64)
    oracle.enter([1], [draws])
    oracle.at([draws[0]])
    first = oracle.grad(x).clone()
    assert torch.equal(first, oracle.grad(x))
    assert torch.equal(oracle.full_grad(x), oracle.inner.full_grad(x))
    oracle.at([draws[1]])
    assert not torch.equal(first, oracle.grad(x))


@pytest.mark.parametrize("algorithm", [fedlearn.FedAvg(lr=0.05), fedlearn.Scaffold(lr=0.05, option="I"),
                                       fedlearn.FedBuff(lr=0.05), fedlearn.DSGD(lr=0.05), fedlearn.GradientCoding()],
                         ids=lambda a: type(a).__name__)
def test_every_protocol_runs_with_it(algorithm: Any) -> None:
    given = {"algorithm": algorithm, "task": quadratic(), "rounds": 2, "progress": "none"}
    if isinstance(algorithm, fedlearn.GradientCoding):
        given["task"] = blobs((10,) * 6)
    plain, noisy, again = (fedlearn.run(**given, modifiers=m) for m in (
        {}, {"noise": GradientNoise()}, {"noise": GradientNoise()}))
    assert noisy.sha256 == again.sha256 != plain.sha256
    assert fedlearn.run(**given, modifiers={"noise": GradientNoise(eta=0.0)}).sha256 == plain.sha256


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("local", [LocalWork(epochs=2, batch_size=8), LocalWork(steps=3, batch_size=8)])
def test_alone_and_stacked_alike(dtype: torch.dtype, rtol: float, local: LocalWork) -> None:
    _, task = modified(fedlearn.FedAvg(), blobs(dtype=dtype), {"noise": GradientNoise(0.3)})
    runs = [play(experiment(fedlearn.FedAvg(), 3, task=task, local=local, stack=stack))[0] for stack in (False, True)]
    assert float((runs[0] - runs[1]).norm() / runs[0].norm()) < rtol


def test_in_a_run_the_steps_are_the_equation_of_the_paper() -> None:
    """Against a transcription: clients start from x and take K noisy steps each."""
    task, eta, gamma, lr = quadratic(sigma=0.0), 0.3, 0.55, 0.1
    history = fedlearn.run(algorithm=fedlearn.FedAvg(lr=lr), task=task, rounds=3, progress="none", stack=False,
                           local=LocalWork(steps=2), modifiers={"noise": GradientNoise(eta, gamma)})
    x, (A, optima) = np.zeros(6), (task.A.numpy(), task.optima.numpy())
    for r in range(3):
        moved = []
        for m in range(4):
            y, word = x.copy(), int(generator(0, "local", r, m).integers(2**63))
            for k in range(2):
                z = generator(word, "gradient noise", k).standard_normal(6)
                y = y - lr * (A[m] @ (y - optima[m]) + (eta / (1 + 2 * r + k) ** gamma) ** 0.5 * z)
            moved.append(y)
        x = np.mean(moved, axis=0)
    np.testing.assert_allclose(history.x.numpy(), x, rtol=1e-12, atol=1e-12)


def test_a_resumed_run_must_have_the_same_noise(tmp_path: Any) -> None:
    given = {"algorithm": fedlearn.FedAvg(), "folder": tmp_path / "run", "checkpoint_every": 1, "progress": "none"}
    fedlearn.run(**given, task=quadratic(), rounds=2, modifiers={"noise": GradientNoise()})
    with pytest.raises(ConfigError, match="modifiers: found .*0.3.*allowed: .*0.01"):
        fedlearn.run(**given, task=quadratic(), rounds=3, modifiers={"noise": GradientNoise(0.3)}, resume=True)
    resumed = fedlearn.run(**given, task=quadratic(), rounds=4, modifiers={"noise": GradientNoise()}, resume=True)
    given.pop("folder")
    assert resumed.sha256 == fedlearn.run(**given, task=quadratic(), rounds=4,
                                          modifiers={"noise": GradientNoise()}).sha256


def test_travels_to_other_processes_and_devices() -> None:
    task = pickle.loads(pickle.dumps(GradientNoise(0.3).on(blobs())))
    assert isinstance(task, NoisyTask) and task.eta == 0.3 and len(task.sizes) == 6
    there = task.to("cpu")
    assert isinstance(there, NoisyTask) and there.inner is not task.inner
    assert "precision" in signature(task.oracle).parameters
    assert not hasattr(GradientNoise().on(quadratic()), "store")


@pytest.mark.parametrize("field", ["eta", "gamma"])
def test_what_is_out_of_range_is_named(field: str) -> None:
    with pytest.raises(ConfigError) as e:
        GradientNoise(**{field: -0.1})
    assert e.value.key == field
