"""The baselines against their papers' equations, torch's optimisers, hand computation and one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import published as paper
import pytest
import torch
from published import NOISE, A, K, M, P, T
from torch import Tensor
from toy import Federation, Quadratic

from fedlearn.algorithms.fedadagrad import FedAdagrad
from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedavgm import FedAvgM
from fedlearn.algorithms.feddyn import FedDyn
from fedlearn.algorithms.fedexp import FedExP
from fedlearn.algorithms.fednova import FedNova
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.fedyogi import FedYogi
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.mimelite import MimeLite
from fedlearn.contracts import RoundInfo, ServerAlgorithm
from fedlearn.errors import ConfigError

SHARES = np.array([1.0, 3.0, 2.0, 5.0, 4.0])
STEPS = (6, 1, 3, 2, 4)
COHORTS = [[0, 1, 2, 3, 4], [0, 2, 3], [1, 4], [0, 1, 2, 3, 4], [2, 3, 4], [0, 1, 3]]
ROUNDS = [(cohort, STEPS, SHARES[cohort] / SHARES[cohort].sum()) for cohort in COHORTS]


def federation(algorithm: ServerAlgorithm, noisy: bool = True) -> Federation:
    noise = torch.from_numpy(NOISE) if noisy else None
    return Federation(algorithm, Quadratic(torch.from_numpy(A), torch.from_numpy(T), noise),
                      torch.zeros(P, dtype=torch.float64))


def models(algorithm: ServerAlgorithm, rounds: Any = ROUNDS) -> list[Tensor]:
    run = federation(algorithm)
    return [run.round(steps, SHARES.tolist(), cohort) for cohort, steps, _ in rounds]


FEDOPT = {"eta": 0.1, "eta_g": 0.05, "beta1": 0.8, "tau": 0.01, "v0": 0.02}
OPT = {"lr": 0.1, "server_lr": 0.05, "beta1": 0.8, "tau": 0.01, "v0": 0.02}
ADAM = {"optimizer": "adam", "beta1": 0.8, "beta2": 0.7, "eps": 0.3}
CASES: list[tuple[ServerAlgorithm, Callable[..., Any]]] = [
    (FedAdagrad(**OPT), partial(paper.fedopt, lambda v, d: v + d**2, **FEDOPT)),
    (FedAdam(**OPT, beta2=0.7), partial(paper.fedopt, lambda v, d: 0.7 * v + 0.3 * d**2, **FEDOPT)),
    (FedYogi(**OPT, beta2=0.7),
     partial(paper.fedopt, lambda v, d: v - 0.3 * d**2 * np.sign(v - d**2), **FEDOPT)),
    (FedAvgM(lr=0.1, server_lr=0.7, momentum=0.6), partial(paper.fedavgm, eta=0.1, eta_g=0.7, beta=0.6)),
    (FedNova(lr=0.1), partial(paper.fednova, eta=0.1, rho=0.0, mu=0.0)),
    (FedNova(lr=0.1, momentum=0.7), partial(paper.fednova, eta=0.1, rho=0.7, mu=0.0)),
    (FedNova(lr=0.1, mu=0.5), partial(paper.fednova, eta=0.1, rho=0.0, mu=0.5)),
    (FedNova(lr=0.1, momentum=0.7, mu=0.5), partial(paper.fednova, eta=0.1, rho=0.7, mu=0.5)),
    (FedDyn(lr=0.1, alpha=0.4), partial(paper.feddyn, eta=0.1, alpha=0.4)),
    (MimeLite(lr=0.1, server_lr=0.8, beta1=0.6),
     partial(paper.mime, eta=0.1, eta_g=0.8, adam=None, beta=0.6, lite=True)),
    (MimeLite(lr=0.05, server_lr=0.8, **ADAM),
     partial(paper.mime, eta=0.05, eta_g=0.8, adam=(0.8, 0.7, 0.3), beta=0.0, lite=True)),
    (Mime(lr=0.1, server_lr=0.8, beta1=0.6),
     partial(paper.mime, eta=0.1, eta_g=0.8, adam=None, beta=0.6, lite=False)),
    (Mime(lr=0.05, server_lr=0.8, **ADAM),
     partial(paper.mime, eta=0.05, eta_g=0.8, adam=(0.8, 0.7, 0.3), beta=0.0, lite=False)),
    (FedExP(lr=0.1, eps=1e-4), partial(paper.fedexp, eta=0.1, eps=1e-4)),
]


@pytest.mark.parametrize(("algorithm", "published"), CASES, ids=lambda case: type(case).__name__)
def test_is_what_the_paper_says(algorithm: ServerAlgorithm, published: Callable[..., Any]) -> None:
    """Six rounds of partial participation, unequal steps and weights, noisy gradients."""
    expected = list(published(ROUNDS))
    for found, x in zip(models(algorithm), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), x, rtol=1e-12, atol=1e-13)
    assert np.abs(expected[-1] - expected[-2]).max() > 1e-4


def test_fedexp_extrapolates_in_these_rounds_and_says_how_far() -> None:
    run = federation(FedExP(lr=0.1, eps=0.001))
    found = [run.algorithm.metrics(run.s)["server_step"] for _ in range(8) if run.round(STEPS) is not None]
    assert min(found) >= 1 and max(found) > 1.01


@pytest.mark.parametrize(("algorithm", "optimizer"), [
    (FedAvgM(server_lr=0.3, momentum=0.8), partial(torch.optim.SGD, lr=0.3, momentum=0.8)),
    (FedAdagrad(server_lr=0.3, tau=0.02, v0=0.5),
     partial(torch.optim.Adagrad, lr=0.3, eps=0.02, initial_accumulator_value=0.5)),
], ids=["FedAvgM", "FedAdagrad"])
def test_servers_agree_with_torch(algorithm: ServerAlgorithm, optimizer: Any) -> None:
    """torch's optimiser on minus the mean difference; its epsilon stands outside the root, as tau does."""
    x = torch.ones(7, dtype=torch.float64, requires_grad=True)
    other, s = optimizer([x]), algorithm.server_init(x.detach().clone())
    rng = torch.Generator().manual_seed(4)
    for r in range(9):
        dx = torch.randn(7, generator=rng, dtype=torch.float64)
        x.grad = -dx
        other.step()
        s = algorithm.server_update(s, {"dx": dx}, RoundInfo(r, 9, 3, 3))
        torch.testing.assert_close(algorithm.model(s), x.detach(), rtol=1e-13, atol=1e-14)


# --- exact relations ------------------------------------------------------------------------------------------------

EQUAL = [(range(M), [4] * M, SHARES / SHARES.sum()) for _ in range(5)]


@pytest.mark.parametrize("algorithm", [
    FedProx(lr=0.2, mu=0.0, server_lr=0.9), FedNova(lr=0.2, server_lr=0.9), FedAvgM(lr=0.2, server_lr=0.9, momentum=0),
    MimeLite(lr=0.2, server_lr=0.9, beta1=0.0)], ids=lambda a: type(a).__name__)
def test_becomes_fedavg(algorithm: ServerAlgorithm) -> None:
    for found, x in zip(models(algorithm, EQUAL), models(FedAvg(lr=0.2, server_lr=0.9), EQUAL), strict=True):
        torch.testing.assert_close(found, x, rtol=1e-14, atol=1e-15)


def test_fedexp_with_an_infinite_eps_has_the_iterates_of_fedavg() -> None:
    damped, plain, free = (federation(a) for a in (FedExP(lr=0.2, eps=1e300), FedAvg(lr=0.2), FedExP(lr=0.2, eps=1e-9)))
    for _ in range(5):
        before = plain.s.x
        average, x = damped.round(4), plain.round(4)
        assert torch.equal(damped.s.x, x) and torch.equal(average, (before + x) / 2)
        free.round(4)
    assert not torch.allclose(free.s.x, plain.s.x)


def test_mime_with_one_client_and_plain_steps_is_gradient_descent_without_its_noise_at_the_first_step() -> None:
    run = federation(Mime(lr=0.2, beta1=0.0))
    found = run.round(1, cohort=[2])
    np.testing.assert_allclose(found.numpy(), -0.2 * paper.full(2, np.zeros(P)), rtol=1e-14)


@pytest.mark.parametrize("algorithm", [FedDyn(lr=0.2, alpha=0.5), Mime(lr=0.2, beta1=0.0)], ids=["FedDyn", "Mime"])
def test_drift_is_removed(algorithm: ServerAlgorithm) -> None:
    """With exact gradients these end at the optimum of the plain mean, from which FedAvg stays away."""
    optimum = torch.from_numpy((A * T).sum(0) / A.sum(0))
    ends = []
    for run in (federation(algorithm, noisy=False), federation(FedAvg(lr=0.2), noisy=False)):
        for _ in range(300):
            x = run.round(K)
        ends.append(float((x - optimum).norm()))
    assert ends[0] < 1e-12 and ends[1] > 1e-2


def test_feddyn_keeps_h_the_mean_of_the_clients() -> None:
    run = federation(FedDyn(lr=0.1, alpha=0.3))
    for cohort, steps, _ in ROUNDS:
        run.round(steps, SHARES.tolist(), cohort, lost=cohort[:1])
        torch.testing.assert_close(run.s.h, torch.stack(run.states).mean(0), rtol=1e-13, atol=1e-15)
    assert float(run.s.h.norm()) > 0.01


def test_fednova_has_the_optimum_of_the_whole_where_fedavg_has_that_of_the_busy() -> None:
    """Clients with 1 to 8 steps: FedAvg's distance stays with a fifth of the step, FedNova's becomes a fifth."""
    optimum = torch.from_numpy((A * T).sum(0) / A.sum(0))
    far: dict[type, list[float]] = {FedAvg: [], FedNova: []}
    for eta, rounds in ((0.1, 60), (0.02, 300)):
        for kind, distances in far.items():
            run = Federation(kind(lr=eta), Quadratic(torch.from_numpy(A), torch.from_numpy(T)),
                             torch.zeros(P, dtype=torch.float64))
            for _ in range(rounds):
                x = run.round([8, 1, 4, 2, 6])
            distances.append(float((x - optimum).norm()))
    assert far[FedAvg][1] > 0.7 * far[FedAvg][0] and far[FedNova][1] < 0.4 * far[FedNova][0]


# --- by hand --------------------------------------------------------------------------------------------------------

def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_hand(algorithm: ServerAlgorithm) -> Federation:
    """Gradients y - 1 and 3 y + 3, from 0: with eta = 0.1 local SGD goes 0, 0.1, 0.19 and 0, -0.3, -0.51."""
    return Federation(algorithm, Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None]), vec(0))


def test_fednova_by_hand() -> None:
    # One step and two: d = 0.1 / 0.1 = 1 and -0.51 / 0.2 = -2.55; eta tau_eff = 0.15; 0.15 (1 - 2.55) / 2.
    assert by_hand(FedNova(lr=0.1)).round([1, 2]).item() == pytest.approx(0.15 * -0.775, rel=1e-14)
    # Momentum 0.5: u = -1, then -0.5 - 0.9 = -1.4, y = 0.24; a = 1 + 1.5; client 2: u = 3, 1.5 + 2.1 = 3.6, y = -0.66.
    found = by_hand(FedNova(lr=0.1, momentum=0.5)).round(2).item()
    assert found == pytest.approx((0.24 - 0.66) / 2, rel=1e-14)


def test_feddyn_by_hand() -> None:
    # alpha = 1, as FedProx: y = 0.18 and -0.48, l = -0.18 and 0.48, h = 0.15, x = -0.15 - 0.15.
    run = by_hand(FedDyn(lr=0.1, alpha=1))
    assert run.round(2).item() == pytest.approx(-0.3, rel=1e-14)
    assert [c.item() for c in run.states] == pytest.approx([-0.18, 0.48], rel=1e-14)
    # Round 2, one step: -0.3 - 0.1 (-1.3 + 0.18) = -0.188 and -0.3 - 0.1 (2.1 - 0.48) = -0.462;
    # h = 0.15 - (0.112 - 0.162) / 2 = 0.175; x = -0.325 - 0.175.
    assert run.round(1).item() == pytest.approx(-0.5, rel=1e-14)


def test_mime_by_hand() -> None:
    # c = 1, m = 0, beta = 0.5.  Client 1: -0.05, then g = -1.05 + 1 + 1 = 0.95: -0.0975.
    #                            Client 2: -0.05, then g = 2.85 - 3 + 1 = 0.85: -0.0925.
    run = by_hand(Mime(lr=0.1, beta1=0.5))
    assert run.round(2).item() == pytest.approx(-0.095, rel=1e-14)
    assert run.s.s["m"].item() == pytest.approx(0.5, rel=1e-14)
    # MimeLite: 0.05, 0.0975 and -0.15, -0.2775; m = 0.5 of the same c.
    lite = by_hand(MimeLite(lr=0.1, beta1=0.5))
    assert lite.round(2).item() == pytest.approx(-0.09, rel=1e-14)
    assert lite.s.s["m"].item() == pytest.approx(0.5, rel=1e-14)


def test_fedexp_by_hand() -> None:
    # 0.19 and -0.51: mean -0.16, mean square 0.1481; eta_g = 0.1481 / (2 (0.0256 + 0.0044)) = 2.46833...
    run = by_hand(FedExP(lr=0.1, eps=0.0044))
    assert run.round(2).item() == pytest.approx(-0.16 * 0.1481 / 0.06 / 2, rel=1e-13)
    assert run.s.x.item() == pytest.approx(-0.16 * 0.1481 / 0.06, rel=1e-13)


@pytest.mark.parametrize(("make", "key"), [
    (partial(MimeLite, optimizer="sgd"), "optimizer"), (partial(Mime, beta2=0.9), "beta2"),
    (partial(MimeLite, eps=0.1), "eps"), (partial(Mime, optimizer="adam", eps=0.0), "eps"),
    (partial(Mime, optimizer="adam", beta2=1.0), "beta2"), (partial(FedExP, eps=0.0), "eps"),
    (partial(FedDyn, alpha=0.0), "alpha"), (partial(FedAvgM, momentum=1.0), "momentum"),
    (partial(FedNova, momentum=1.0), "momentum"),
])
def test_wrong_choices_name_their_key(make: Callable[[], Any], key: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert error.value.key == f"algorithm.{key}" and "\n" not in str(error.value)


def test_mime_with_adam_has_the_papers_constants_where_none_are_given() -> None:
    given = models(Mime(lr=1e-4, optimizer="adam", beta2=0.99, eps=0.001), ROUNDS[:2])
    assert all(torch.equal(*pair) for pair in
               zip(models(Mime(lr=1e-4, optimizer="adam"), ROUNDS[:2]), given, strict=True))


def test_schedules_reach_fednovas_normalisation() -> None:
    """With half the step size throughout FedNova moves as with half of lr."""
    halved, half = federation(FedNova(lr=0.1, momentum=0.3)), federation(FedNova(lr=0.05, momentum=0.3))
    for _ in range(3):
        torch.testing.assert_close(halved.round(STEPS, factor=0.5), half.round(STEPS), rtol=1e-14, atol=1e-15)
    assert replace(halved.algorithm, lr=0.05) == half.algorithm


def test_transcriptions_stand_on_the_same_problem() -> None:
    run: Sequence[Tensor] = models(FedAvg(lr=0.1), ROUNDS[:1])
    cohort, steps, p = ROUNDS[0]
    expected = sum(pm * paper.sgd(m, np.zeros(P), steps[m], 0.1) for m, pm in zip(cohort, p, strict=True))
    np.testing.assert_allclose(run[0].numpy(), expected, rtol=1e-13)
