"""Exact relations between algorithms, and what SCAFFOLD's control variates are for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toy import Federation, Quadratic

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.contracts import ServerAlgorithm

CLIENTS, SIZE = 8, 10
SIZES = [1.0, 9.0, 2.0, 5.0, 1.0, 3.0, 7.0, 4.0]


def problem(noisy: bool = True) -> Quadratic:
    g = torch.Generator().manual_seed(11)
    a = 0.2 + torch.rand(CLIENTS, SIZE, generator=g, dtype=torch.float64)
    t = torch.randn(CLIENTS, SIZE, generator=g, dtype=torch.float64)
    noise = torch.randn(10, CLIENTS, SIZE, generator=g, dtype=torch.float64) if noisy else None
    return Quadratic(a, t, noise)


def federation(algorithm: ServerAlgorithm, noisy: bool = True) -> Federation:
    return Federation(algorithm, problem(noisy), torch.zeros(SIZE, dtype=torch.float64))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-15, atol=2e-15)


@pytest.mark.parametrize("weights", [None, SIZES])
def test_fedavg_with_one_step_is_minibatch_sgd(weights: list[float] | None) -> None:
    one, other = (federation(algorithm(lr=0.3, server_lr=1.2)) for algorithm in (FedAvg, MinibatchSGD))
    for _ in range(5):
        close(one.round(1, weights), other.round(1, weights))


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_with_one_step_and_everybody_is_minibatch_sgd(option: str) -> None:
    one, other = federation(Scaffold(lr=0.3, option=option)), federation(MinibatchSGD(lr=0.3))
    for _ in range(5):
        close(one.round(1), other.round(1))


def test_fedprox_without_its_term_is_fedavg_bit_for_bit() -> None:
    one, other = federation(FedProx(lr=0.3, mu=0)), federation(FedAvg(lr=0.3))
    pulled = federation(FedProx(lr=0.3, mu=0.1))
    for _ in range(5):
        x = other.round(4, SIZES)
        assert torch.equal(one.round(4, SIZES), x) and not torch.equal(pulled.round(4, SIZES), x)


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_keeps_c_the_mean_of_the_clients(option: str) -> None:
    """Partial participation, clients of unequal size and steps, replies that never arrive."""
    run = federation(Scaffold(lr=0.1, option=option))
    g = torch.Generator().manual_seed(2)
    steps, moved = [int(n) for n in SIZES], 0.0
    for round in range(30):
        cohort = torch.randperm(CLIENTS, generator=g)[:4].tolist()
        before = list(run.states)
        run.round(steps, SIZES, cohort, lost=cohort[:1] if round % 3 == 0 else ())
        torch.testing.assert_close(run.s.c, torch.stack(run.states).mean(0), rtol=1e-14, atol=1e-14)
        moved = max(moved, float(run.s.c.norm()))
        assert all(torch.equal(run.states[m], before[m]) for m in range(CLIENTS) if m not in cohort)
    assert moved > 0.1


def test_drift_and_its_removal() -> None:
    """FedAvg ends at the known biased point, SCAFFOLD at the optimum: 120 rounds of 10 exact steps."""
    eta, steps = 0.2, 10
    p = problem(noisy=False)
    optimum = (p.a * p.t).sum(0) / p.a.sum(0)
    pull = 1 - (1 - eta * p.a) ** steps
    biased = (pull * p.t).sum(0) / pull.sum(0)
    assert (biased - optimum).norm() > 0.1
    ends = {}
    algorithms = {"fedavg": FedAvg(lr=eta), "prox": FedProx(lr=eta, mu=1),
                  "I": Scaffold(lr=eta, option="I"), "II": Scaffold(lr=eta, option="II")}
    for name, algorithm in algorithms.items():
        run = federation(algorithm, noisy=False)
        for _ in range(120):
            ends[name] = run.round(steps)
    assert (ends["fedavg"] - biased).norm() < 1e-10
    assert (ends["prox"] - optimum).norm() < (biased - optimum).norm()
    assert (ends["I"] - optimum).norm() < 1e-10 and (ends["II"] - optimum).norm() < 1e-10


def test_scaffold_minimises_the_plain_mean_whatever_the_weighting() -> None:
    run = federation(Scaffold(lr=0.2), noisy=False)
    p = run.problem
    for _ in range(200):
        x = run.round(5, SIZES)
    assert (x - (p.a * p.t).sum(0) / p.a.sum(0)).norm() < 1e-10


def test_scaffold_counts_the_step_sizes_taken() -> None:
    """A client's new control variate is its mean gradient, also when a schedule scales the steps."""
    for factor in (1.0, 0.25):
        run = federation(Scaffold(lr=0.1), noisy=False)
        run.round(1, factor=factor)
        close(torch.stack(run.states), run.problem.a * (0 - run.problem.t))
