"""Accelerated methods and two stages: rounds by hand, the published equations in numpy, and exact relations.

The problem by hand is that of ``test_by_hand``: gradients y - 1 and 3 y + 3, start at 0.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import Federation, Quadratic

from fedlearn.algorithms.fedac import FedAc
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.local_acsa import LocalACSA
from fedlearn.algorithms.minibatch_acsa import MinibatchACSA, step_size
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.two_stage import TwoStage
from fedlearn.contracts import RoundInfo, ServerAlgorithm
from fedlearn.errors import ConfigError

CLIENTS, SIZE, STEPS, ROUNDS = 4, 5, 3, 6


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_hand(algorithm: ServerAlgorithm) -> Federation:
    return Federation(algorithm, Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None]), vec(0))


def problem(noisy: bool = True) -> Quadratic:
    g = torch.Generator().manual_seed(7)
    a = 0.2 + torch.rand(CLIENTS, SIZE, generator=g, dtype=torch.float64)
    t = torch.randn(CLIENTS, SIZE, generator=g, dtype=torch.float64)
    noise = torch.randn(STEPS, CLIENTS, SIZE, generator=g, dtype=torch.float64) if noisy else None
    return Quadratic(a, t, noise)


def rounds(algorithm: ServerAlgorithm, steps: int = STEPS, count: int = ROUNDS, noisy: bool = True) -> Tensor:
    """Return the models after each round, [count, P]."""
    run = Federation(algorithm, problem(noisy), torch.zeros(SIZE, dtype=torch.float64))
    return torch.stack([run.round(steps) for _ in range(count)])


def gradient(x: np.ndarray, k: int) -> np.ndarray:
    """Return the stochastic gradients of all clients, [clients, P]."""
    p = problem()
    assert p.noise is not None
    return p.a.numpy() * (x - p.t.numpy()) + p.noise[k].numpy()


def close(a: Tensor, b: Tensor | np.ndarray, atol: float = 1e-14) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b), rtol=1e-13, atol=atol)


def test_minibatch_acsa_by_hand() -> None:
    run = by_hand(MinibatchACSA(lr=0.1))
    # t = 1: g = 1 at 0; gamma = 0.05, and alpha = 1 makes x = y = -0.05.
    assert run.round(2).item() == pytest.approx(-0.05, rel=1e-14)
    # t = 2: g = (-1.05 + 2.85) / 2 = 0.9 at -0.05; y = -0.05 - 0.1 * 0.9; x = 2/3 y + 1/3 x.
    assert run.round(2).item() == pytest.approx(-0.14 * 2 / 3 - 0.05 / 3, rel=1e-14)
    assert run.s.y.item() == pytest.approx(-0.14, rel=1e-14)


def test_strongly_convex_minibatch_acsa_by_hand() -> None:
    # gamma = sqrt(0.1 / 0.4) = 0.5, alpha = 1 / 0.2 = 5, beta = 6.
    run = by_hand(MinibatchACSA(lr=0.1, mu=0.4))
    assert run.round(2).item() == pytest.approx(-0.1, rel=1e-14) and run.s.y.item() == pytest.approx(-0.5)
    # x^md = -0.5 / 6 - 0.5 / 6 = -1/6, where g = (-7/6 + 5/2) / 2 = 2/3.
    assert run.round(2).item() == pytest.approx(-1 / 6 - 0.2 / 3, rel=1e-14)
    assert run.s.y.item() == pytest.approx(0.8 * -0.5 - 1 / 30 - 1 / 3, rel=1e-14)


def test_fedac_by_hand() -> None:
    # gamma = sqrt(0.1 / (0.2 * 2)) = 0.5, alpha = 10, beta = 11.
    #   client 1: md = 0, g = -1: x = 0.1, w = 0.5;  md = 1.5 / 11, g = -9.5 / 11
    #   client 2: md = 0, g = 3: x = -0.3, w = -1.5;  md = -4.5 / 11, g = 19.5 / 11
    run = by_hand(FedAc(lr=0.1, mu=0.2))
    assert run.round(2).item() == pytest.approx((2.45 - 6.45) / 22, rel=1e-13)
    w = [0.9 * 0.5 + 0.15 / 11 + 4.75 / 11, 0.9 * -1.5 - 0.45 / 11 - 9.75 / 11]
    assert run.s.w.item() == pytest.approx(sum(w) / 2, rel=1e-13)


def test_local_acsa_by_hand() -> None:
    # client 1: t = 1: y = x = 0.05;  t = 2: g = -0.95, y = 0.145, x = 2/3 y + 1/3 * 0.05
    # client 2: t = 1: y = x = -0.15;  t = 2: g = 2.55, y = -0.405, x = 2/3 y - 1/3 * 0.15
    run = by_hand(LocalACSA(lr=0.1))
    assert run.round(2).item() == pytest.approx(((0.29 + 0.05) / 3 + (-0.81 - 0.15) / 3) / 2, rel=1e-13)
    assert run.s.y.item() == pytest.approx(-0.13, rel=1e-13)


def test_two_stages_by_hand() -> None:
    run = by_hand(TwoStage(lr=0.1, minibatch_lr=0.2, switch="round", at=1))
    assert run.round(2).item() == pytest.approx(-0.16, rel=1e-14) and run.algorithm.metrics(run.s) == {"stage": 2.0}
    # The gradients at -0.16 are -1.16 and 2.52, whatever K.
    assert run.round([2, 5]).item() == pytest.approx(-0.16 - 0.2 * 0.68, rel=1e-14)


def test_the_switch_by_drift() -> None:
    # dx = 0.19 and -0.51: the model moves by 0.16, the clients are 0.35 from their mean.
    for at, stage in ((0.45, 1.0), (0.46, 2.0), (2.0, 2.0)):
        run = by_hand(TwoStage(lr=0.1, switch="drift", at=at))
        assert run.algorithm.metrics(run.s) == {"stage": 1.0}
        run.round(2)
        assert run.algorithm.metrics(run.s) == {"stage": stage}


def test_a_stage_does_not_come_back() -> None:
    """Far from the optimum the rule would go on, but the second stage has begun."""
    run = by_hand(TwoStage(lr=0.1, minibatch_lr=1.9, switch="drift", at=1.0))
    stages = []
    for _ in range(4):
        run.round(2)
        stages.append(run.algorithm.metrics(run.s)["stage"])
        run.s = run.s._replace(x=vec(100))
    assert stages == [2.0] * 4


@pytest.mark.parametrize(("at", "first"), [(0.0, 0), (0.3, 2), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_the_switch_after_a_fraction_of_the_rounds(at: float, first: int) -> None:
    algorithm = TwoStage(switch="fraction", at=at)
    s, stages = algorithm.server_init(vec(0)), []
    for r in range(4):
        stages.append(int(algorithm.metrics(s)["stage"]))
        s = algorithm.server_update(s, {"dx": vec(0)}, RoundInfo(r, 4, 1, 1))
    assert stages == [1] * first + [2] * (4 - first)


def test_minibatch_acsa_follows_its_equations() -> None:
    eta, x, y, models = 0.3, np.zeros(SIZE), np.zeros(SIZE), []
    for t in range(1, ROUNDS + 1):
        b, gamma = (t + 1) / 2, eta * t / 2
        md = y / b + (1 - 1 / b) * x
        y = y - gamma * np.mean([gradient(md, k) for k in range(STEPS)], axis=(0, 1))
        x = y / b + (1 - 1 / b) * x
        models.append(x)
    close(rounds(MinibatchACSA(lr=eta)), np.stack(models))


@pytest.mark.parametrize("variant", ["I", "II", "II-code"])
def test_fedac_follows_its_equations(variant: str) -> None:
    eta, mu = 0.2, 0.25
    gamma = max((eta / (mu * STEPS)) ** 0.5, eta)
    alpha = 1 / (gamma * mu) if variant == "I" else 3 / (2 * gamma * mu) - 1 / 2
    beta = {"I": alpha + 1, "II": (2 * alpha**2 - 1) / (alpha - 1), "II-code": 2 * alpha**2 / (alpha - 1)}[variant]
    ag = w = np.zeros((CLIENTS, SIZE))
    models = []
    for _ in range(ROUNDS):
        for k in range(STEPS):
            md = w / beta + (1 - 1 / beta) * ag
            g = gradient(md, k)
            ag, w = md - eta * g, (1 - 1 / alpha) * w + md / alpha - gamma * g
        ag, w = (np.broadcast_to(v.mean(0), v.shape) for v in (ag, w))
        models.append(ag[0])
    close(rounds(FedAc(variant, lr=eta, mu=mu)), np.stack(models))


def test_local_acsa_follows_its_equations() -> None:
    eta, t, models = 0.15, 0, []
    x = y = np.zeros((CLIENTS, SIZE))
    for _ in range(ROUNDS):
        for k in range(STEPS):
            t += 1
            b = (t + 1) / 2
            md = y / b + (1 - 1 / b) * x
            y = y - eta * t / 2 * gradient(md, k)
            x = y / b + (1 - 1 / b) * x
        x, y = (np.broadcast_to(v.mean(0), v.shape) for v in (x, y))
        models.append(x[0])
    close(rounds(LocalACSA(lr=eta)), np.stack(models))


def test_fedac_without_momentum_is_fedavg() -> None:
    plain = FedAc(lr=0.2, gamma=0.2, alpha=1, beta=1, server_lr=1.3)
    close(rounds(plain), rounds(FedAvg(lr=0.2, server_lr=1.3)), 1e-15)


def test_with_one_step_the_local_methods_are_those_of_the_server() -> None:
    close(rounds(FedAc(lr=0.2, mu=0.3), 1), rounds(MinibatchACSA(lr=0.2, mu=0.3), 1))
    close(rounds(LocalACSA(lr=0.2), 1), rounds(MinibatchACSA(lr=0.2), 1))
    assert (rounds(LocalACSA(lr=0.2), 2) - rounds(MinibatchACSA(lr=0.2), 2)).abs().max() > 0.01


def test_two_stages_that_are_one() -> None:
    close(rounds(TwoStage(lr=0.2, switch="round", at=ROUNDS)), rounds(FedAvg(lr=0.2)))
    close(rounds(TwoStage(minibatch_lr=0.3, switch="round", at=0)), rounds(MinibatchSGD(lr=0.3)))
    mixed = rounds(TwoStage(lr=0.2, switch="round", at=3))
    close(mixed[:3], rounds(FedAvg(lr=0.2))[:3])
    assert (mixed[3:] - rounds(FedAvg(lr=0.2))[3:]).abs().min() > 1e-6


def test_the_betas_of_paper_and_code_are_close() -> None:
    K = torch.tensor(1.0, dtype=torch.float64)
    betas = [float(FedAc(variant, mu=1.0, gamma=0.1).parameters(0.1, 1.0, K)[2]) for variant in ("II", "II-code")]
    assert 0 < betas[1] / betas[0] - 1 < 0.003


def test_the_step_size_of_theory_keeps_its_promise() -> None:
    """Noisy quadratics with H = 1: the mean error over 20 runs is below 4 H B^2 / (N (N + 1)) + 4 s B / sqrt(3 N)."""
    for seed, (sigma, N) in enumerate([(0.0, 10), (0.3, 10), (0.3, 40), (3.0, 40)]):
        g = torch.Generator().manual_seed(seed)
        a, t = torch.rand(1, SIZE, generator=g, dtype=torch.float64), torch.randn(1, SIZE, generator=g).double()
        a[0, 0] = 1.0
        B, errors = float(t.norm()), []
        for _ in range(20):
            run = Federation(MinibatchACSA(lr=step_size(1.0, sigma, B, N)), Quadratic(a, t), torch.zeros(SIZE).double())
            for _ in range(N):
                run.problem.noise = torch.randn(1, 1, SIZE, generator=g, dtype=torch.float64) * sigma / SIZE**0.5
                x = run.round(1)
            errors.append(float((a[0] * (x - t[0]).square()).sum() / 2))
        assert 0 < np.mean(errors) < 4 * B**2 / (N * (N + 1)) + 4 * sigma * B / (3 * N) ** 0.5


def test_the_step_size_of_theory() -> None:
    assert step_size(2.0, 0.0, 1.0, 10) == 0.25
    # 2 * 4 * 10 * 11 * 12 / 3 = 3520
    assert step_size(2.0, 2.0, 0.5, 10) == pytest.approx(0.5 / 3520**0.5)


def test_acceleration_accelerates() -> None:
    """On an ill-conditioned quadratic the accelerated methods need far fewer rounds."""
    a = torch.logspace(-3, 0, SIZE, dtype=torch.float64).expand(2, -1)
    ends = {}
    for algorithm in (FedAvg(lr=0.9), LocalACSA(lr=0.45), FedAc(lr=0.9, mu=1e-3), MinibatchSGD(lr=0.9),
                      MinibatchACSA(lr=0.45), MinibatchACSA(lr=0.9, mu=1e-3)):
        run = Federation(algorithm, Quadratic(a, torch.ones_like(a)), torch.zeros(SIZE, dtype=torch.float64))
        for _ in range(40):
            x = run.round(4)
        ends[algorithm] = float((a[0] * (x - 1).square()).sum())
    local, *local_fast, minibatch, fast, strongly = ends.values()
    assert max(local_fast) < local / 2 and max(fast, strongly) < minibatch / 2


@pytest.mark.parametrize(("make", "line"), [
    (lambda: FedAc("III"), "algorithm.variant: found 'III'; allowed: one of I, II, II-code (did you mean II?)."),
    (lambda: FedAc(lr=0.5, mu=2.0), "algorithm.mu: found 2.0; allowed: a number > 0 and < 1 / algorithm.lr = 2. alpha "
                                    "would be at most 1; lower lr, or give alpha."),
    (lambda: FedAc(gamma=20.0, mu=0.1), "algorithm.mu: found 0.1; allowed: a number > 0 and < 1 / algorithm.gamma = "
                                        "0.05. alpha would be at most 1; lower gamma, or give alpha."),
    (lambda: FedAc("II", alpha=1), "algorithm.alpha: found 1; allowed: a number > 1 with algorithm.variant=II. It "
                                   "divides by alpha - 1; give beta too."),
    (lambda: FedAc(alpha=0.9), "algorithm.alpha: found 0.9; allowed: a number >= 1."),
    (lambda: FedAc(beta=0.9), "algorithm.beta: found 0.9; allowed: a number >= 1."),
    (lambda: FedAc(gamma=0.0), "algorithm.gamma: found 0.0; allowed: a number > 0."),
    (lambda: MinibatchACSA(lr=0.5, mu=2.0), "algorithm.mu: found 2.0; allowed: a number >= 0 and < 1 / algorithm.lr = "
                                            "2. A step size above 1 / mu diverges; lower lr."),
    (lambda: TwoStage(switch="never"), "algorithm.switch: found 'never'; allowed: one of drift, fraction, round."),
    (lambda: TwoStage(at=1.5), "algorithm.at: found 1.5; allowed: a number >= 0 and <= 1."),
], ids=lambda value: value.split(":")[0] if isinstance(value, str) else "")
def test_wrong_values_are_refused_in_one_line(make, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == line
