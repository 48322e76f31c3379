"""Clients that leave once content, with any algorithm, and ADA-GD, from which none does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import blobs, experiment, play
from torch import Tensor
from toy import Federation, Quadratic

from fedlearn.algorithms.ada_gd import AdaGD, span
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedsn import FedSN
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.contracts import RoundInfo, ServerState
from fedlearn.errors import ConfigError
from fedlearn.modifiers.averaging import Averaging
from fedlearn.modifiers.defection import Defection
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import FullParticipation
from fedlearn.policies.weighting import SchemeTwo, UniformWeighting
from fedlearn.tasks.quadratic import QuadraticTask
from fedlearn.vectors import digest

WHOLE = LocalWork(steps=1, batch_size=None)


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def planes(seed: int, clients: int = 4, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors a_m and a start, of F_m = <a_m, x>^2 / 2 with every F_m > 0.08 there."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((clients, d))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    while True:
        x = rng.standard_normal(d)
        if ((a @ x) ** 2 / 2).min() > 0.08:
            return a, x


def task_of(a: np.ndarray, x: np.ndarray) -> QuadraticTask:
    A = torch.from_numpy(a[:, :, None] * a[:, None, :])
    return QuadraticTask(A, torch.zeros(a.shape, dtype=torch.float64), torch.from_numpy(x))


def final(algorithm: Any, task: Any, rounds: int, eps: float | None, **choices: Any) -> tuple[np.ndarray, dict]:
    algorithm = algorithm if eps is None else Defection(eps).around(algorithm)
    options = {"local": WHOLE, "weighting": UniformWeighting(), "sampling": FullParticipation(), "stack": True}
    options |= choices
    x, reports = play(experiment(algorithm, rounds, task=task, **options))
    return x.numpy(), dict(reports[-1].extra)


# --- leaving ----------------------------------------------------------------------------------------------------------

def test_by_hand() -> None:
    """F = (y - 1)^2 / 2 and 3 (y + 1)^2 / 2 from 0 with eta = 0.1, K = 1; the second leaves at 3/2 * 0.9^2 = 1.215."""
    p = Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None])
    run = Federation(Defection(1.3).around(FedAvg(lr=0.1)), p, vec(0))
    # At 0 the losses are 0.5 and 1.5: the first is gone at once.
    assert run.round(1).item() == pytest.approx(-0.3, rel=1e-14)
    assert [c.own.item() for c in run.states] == [1, 0] and run.algorithm.metrics(run.s) == {"left": 1}
    # At -0.3: 3/2 * 0.49 = 0.735; nobody is left, and the model stays.
    x = run.round(1).item()
    assert x == pytest.approx(-0.3, rel=1e-14) and run.algorithm.metrics(run.s) == {"left": 2}
    assert run.round(1).item() == x and run.s.own.item() == 2


def test_the_server_moves_with_who_is_left() -> None:
    a, x = planes(1)
    here, gone, left = x.copy(), np.zeros(4, bool), []
    for _ in range(12):
        losses = (a @ here) ** 2 / 2
        gone |= losses <= 0.05
        left.append(int(gone.sum()))
        if not gone.all():
            here = here - 0.9 * ((a @ here)[:, None] * a)[~gone].mean(0)
    assert 0 < left[2] < 4 and left[-1] > left[2]
    ours, extra = final(FedAvg(lr=0.9), task_of(a, x), 12, 0.05)
    np.testing.assert_allclose(ours, here, rtol=0, atol=1e-13)
    assert extra["left"] == left[-1]


def test_a_server_that_sees_every_upload_sees_those_of_who_is_left() -> None:
    a, x = planes(2)
    near = a.copy()
    near[1] -= (near[1] @ x - 0.01) * x / (x @ x)   # content at the start
    ours, extra = final(AdaGD(lr=0.1, eps=0.02), task_of(near, x), 40, 0.02)
    others, _ = final(AdaGD(lr=0.1, eps=0.02), task_of(np.delete(near, 1, 0), x), 40, None)
    np.testing.assert_allclose(ours, others, rtol=0, atol=1e-13)
    assert extra["left"] == 1 and np.linalg.norm(ours - x) > 0.1


@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1), Scaffold(lr=0.1), FedSN(lr=0.1), AdaGD(lr=0.1), Mime(lr=0.1),
                                       Averaging(over="steps").around(Scaffold(lr=0.1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_nobody_leaves_not_a_bit_changes(algorithm: Any, dtype: torch.dtype) -> None:
    task = blobs(dtype=dtype)
    plain, watched = (digest(play(experiment(a, 3, task=task, cohort=4))[0])
                      for a in (algorithm, Defection(0.0).around(algorithm)))
    assert plain == watched


@pytest.mark.parametrize("weighting", [UniformWeighting(), SchemeTwo()])
@pytest.mark.parametrize(("algorithm", "eps"), [
    (FedAvg(lr=0.1), 0.4), (Scaffold(lr=0.1), 0.4), (Mime(lr=0.1), 0.6), (FedSN(lr=0.2, radius=0.5), 0.3),
    (AdaGD(lr=0.5, eps=0.3), 0.7), (Averaging(over="steps").around(FedAvg(lr=0.1)), 0.4)])
def test_clients_alone_and_stacked(algorithm: Any, eps: float, weighting: Any) -> None:
    task = blobs(dtype=torch.float64)
    (x, extra), (y, other) = (final(algorithm, task, 6, eps, stack=stack, cohort=5, weighting=weighting,
                                    sampling=experiment(FedAvg()).sampling, local=LocalWork(steps=3, batch_size=8))
                              for stack in (True, False))
    np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
    assert extra == pytest.approx(other) and 0 < extra["left"] < 6


def test_scheme_two_keeps_its_scale_among_who_is_left() -> None:
    a, x = planes(1)
    one, _ = final(FedAvg(lr=0.3), task_of(a, x), 6, 0.05, weighting=UniformWeighting())
    two, _ = final(FedAvg(lr=0.3), task_of(a, x), 6, 0.05, weighting=SchemeTwo())
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-13)


def test_scaffold_leaves_the_control_variates_of_who_is_gone() -> None:
    p = Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None])
    run = Federation(Defection(0.0).around(Scaffold(lr=0.1)), p, vec(0))
    run.round(2)
    run.states[0] = run.states[0]._replace(own=vec(1))
    kept = run.states[0].inner.clone()
    for _ in range(3):
        run.round(2)
    assert torch.equal(run.states[0].inner, kept)
    torch.testing.assert_close(run.s.inner.c, (kept + run.states[1].inner) / 2, rtol=1e-14, atol=1e-15)


def test_who_is_gone_is_not_in_the_prelude_either() -> None:
    """Mime's control variate is the mean gradient at x of who stays: then one client alone runs as gradient descent."""
    p = Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None])
    run = Federation(Defection(1.3).around(Mime(lr=0.1)), p, vec(0))
    alone = Federation(Mime(lr=0.1), Quadratic(vec(3)[:, None], vec(-1)[:, None]), vec(0))
    assert run.round(2).item() == pytest.approx(alone.round(2).item(), rel=1e-14)
    assert run.algorithm.metrics(run.s)["left"] == 1


def test_who_diverges_after_leaving_does_no_harm() -> None:
    p = Quadratic(vec(1e200, 1)[:, None], vec(0, 5)[:, None])
    run = Federation(Defection(0.1).around(FedAvg(lr=0.1)), p, vec(0))
    for _ in range(4):
        x = run.round(3)
    assert torch.isfinite(x).all() and run.s.own.item() == 1


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="eps: found -1"):
        Defection(-1)

    class Whole(FedAvg):
        everybody = True

    with pytest.raises(ConfigError, match="Whole is only defined with full participation"):
        Defection().around(Whole())


# --- ADA-GD -----------------------------------------------------------------------------------------------------------

def by_the_paper(a: np.ndarray, w: np.ndarray, eta: float, eps: float, rounds: int) -> tuple[np.ndarray, set[str]]:
    cases = set()
    for _ in range(rounds):
        F, g = (a @ w) ** 2 / 2, (a @ w)[:, None] * a
        D = F - eta * np.linalg.norm(g, axis=1) <= eps
        if D.all():
            cases.add("all")
            continue
        v = -g[~D].mean(0)
        cases.add("some" if D.any() else "none")
        if D.any():
            v = v - np.linalg.pinv(g[D]) @ (g[D] @ v)
        w = w + eta * v * min(1.0, 1 / np.linalg.norm(v))
    return w, cases


@pytest.mark.parametrize("seed", range(3))
def test_ada_gd_is_the_papers_and_nobody_leaves(seed: int) -> None:
    a, x = planes(seed)
    w, cases = by_the_paper(a, x, 0.1, 0.04, 150)
    assert cases == {"none", "some", "all"}
    ours, extra = final(AdaGD(lr=0.1, eps=0.04), task_of(a, x), 150, 0.04)
    np.testing.assert_allclose(ours, w, rtol=0, atol=1e-12)
    assert extra["left"] == 0 and ((a @ ours) ** 2 / 2).max() <= 0.08
    assert final(FedAvg(lr=0.1), task_of(a, x), 150, 0.04)[1]["left"] > 0


def update(down: Tensor, losses: Tensor, algorithm: AdaGD, **info: Any) -> Tensor:
    told = RoundInfo(0, 9, len(down), len(down), **info)
    return algorithm.server_update(ServerState(torch.zeros(down.shape[1], dtype=down.dtype)),
                                   {"dx": down, "loss": losses[:, None]}, told).x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ada_gd_by_hand(dtype: torch.dtype) -> None:
    down = torch.tensor([[0.5, 0, 0], [0, 0.25, 0], [0.5, 0.5, 0.5]], dtype=dtype)
    far, near = torch.tensor([9.0, 9.0, 9.0], dtype=dtype), torch.tensor([0.05, 9.0, 9.0], dtype=dtype)
    algorithm = AdaGD(lr=0.1, eps=0.01)
    thirds = [0.1 / 3, 0.025, 0.05 / 3]
    assert update(down, far, algorithm).tolist() == pytest.approx(thirds, rel=1e-6)
    # The first would be at 0.05 - 0.1 * 0.5 = 0: the mean of the others without its direction.
    assert update(down, near, algorithm).tolist() == pytest.approx([0, 0.0375, 0.025], rel=1e-6, abs=1e-9)
    assert update(down, near, algorithm, weights=[0.5, 0.4, 0.1]).tolist() == pytest.approx([0, 0.03, 0.01], abs=1e-8)
    # Half the step, by either factor: 0.05 - 0.05 * 0.5 is still above eps.
    for factor in ({"client_factor": 0.5}, {"lr_factor": 0.5}):
        assert update(down, near, algorithm, **factor).tolist() == pytest.approx([v / 2 for v in thirds], rel=1e-6)
    assert update(down, near, AdaGD(lr=0.1, eps=0.01, margin=20)).tolist() == [0, 0, 0]
    # Steps are no longer than eta.
    assert float(update(100 * down, 1e3 + far, algorithm).norm()) == pytest.approx(0.1, rel=1e-6)
    # Whose gradient is that of a predicted defector cannot be helped.
    twin = torch.stack([down[0], 2 * down[0]])
    assert update(twin, near[:2], algorithm).abs().max() < 1e-9


def test_span_takes_dependent_and_vanishing_gradients() -> None:
    rows = vec(1, 2, 0, 2, 4, 0, 0, 0, 0).view(3, 3)
    axes = span(rows)
    assert axes.shape == (1, 3) and torch.allclose(axes.mT @ axes @ rows[0], rows[0])
    assert span(torch.zeros(2, 3)).shape == (0, 3)
