"""FedOSGD and FedPOSGD: steps by hand, against plain numpy, exact identities, and the online task."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from problems import experiment, play
from torch import Tensor
from toy import Federation, Quadratic

import fedlearn
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedosgd import FedOSGD
from fedlearn.algorithms.fedposgd import FedPOSGD
from fedlearn.errors import ConfigError
from fedlearn.policies.intervals import GrowingIntervals
from fedlearn.policies.local_work import LocalWork, RoundWork
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.seeds import generator
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.online import Online, OnlineTask
from fedlearn.tasks.quadratic import Quadratic as Quadratics

CLIENTS, DIMENSION, ROUNDS, WORK = 3, 5, 4, LocalWork(steps=6)
GAME = Online(dimension=DIMENSION, rank=2).build(CLIENTS, 7, torch.float64)


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def run(algorithm: Any, task: Any = GAME, rounds: int = ROUNDS, **choices: Any) -> tuple[Tensor, float]:
    """Return the final model and the mean of the played losses."""
    options = {"local": WORK, "weighting": UniformWeighting(), "stack": True, **choices}
    x, reports = play(experiment(algorithm, rounds, task=task, **options))
    return x, reports[-1].extra["played_loss"]


def game(t: int) -> np.ndarray:
    """a_t, drawn in blocks of 64."""
    c = generator(7, "problem", 1, t // 64).standard_normal((64, 2))[t % 64]
    return GAME.Q.numpy() @ (c / np.linalg.norm(c))


def by_the_paper(feedback: str, eta: float, delta: float, B: float) -> tuple[np.ndarray, float]:
    x, w, losses = np.zeros(DIMENSION), GAME.w.numpy(), []
    for r in range(ROUNDS):
        ends = []
        for m in range(CLIENTS):
            y, stream = x.copy(), generator(0, "direction", r, m)
            for k in range(6):
                a = game(6 * r + k)
                p = y * min(1.0, B / max(np.linalg.norm(y), 1e-300))
                if feedback == "first_order":
                    losses.append(abs(a @ (p - w)))
                    y = y - eta * np.sign(a @ (p - w)) * a
                    continue
                u = stream.standard_normal(DIMENSION)
                u /= np.linalg.norm(u)
                ahead, behind = (abs(a @ (p + s * delta * u - w)) for s in (1, -1))
                if feedback == "two_point":
                    losses.append((ahead + behind) / 2)
                    y = y - eta * DIMENSION * (ahead - behind) / (2 * delta) * u
                else:
                    losses.append(ahead)
                    y = y - eta * DIMENSION * ahead / delta * u
            ends.append(y)
        x = np.mean(ends, 0)
    return x * min(1.0, B / np.linalg.norm(x)), float(np.mean(losses))


@pytest.mark.parametrize("feedback", ["first_order", "two_point", "one_point"])
def test_is_the_papers(feedback: str) -> None:
    eta, delta, B = (0.02, 0.3, 0.4) if feedback == "one_point" else (0.1, 0.01, 0.4)
    ours = (FedPOSGD(lr=eta, delta=delta, radius=B) if feedback == "one_point" else
            FedOSGD(lr=eta, delta=delta, radius=B, feedback=feedback))
    x, played = by_the_paper(feedback, eta, delta, B)
    assert np.linalg.norm(x) == pytest.approx(B)     # the projection is at work
    model, found = run(ours)
    np.testing.assert_allclose(model.numpy(), x, rtol=0, atol=1e-12)
    assert found == pytest.approx(played, rel=1e-13)


def test_by_hand() -> None:
    # Gradients y - 1 and 3 y + 3 at 0; in one dimension u = 1 and two values give the gradient of a parabola.
    p = Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None], directions=torch.ones(2, 2, 1, dtype=torch.float64))
    for feedback in ("two_point", "first_order"):
        federation = Federation(FedOSGD(lr=0.1, delta=0.5, feedback=feedback), p, vec(0))
        assert federation.round(2).item() == pytest.approx(-0.16, rel=1e-14)
        # Losses (1 + 0.81) / 4 and 3 (1 + 0.49) / 4 a step; with two points a delta^2 / 2 more.
        more = (0.125 + 3 * 0.125) / 2 if feedback == "two_point" else 0
        assert federation.s.played.item() == pytest.approx((0.4525 + 1.1175) / 2 + more, rel=1e-14)
    one = Federation(FedPOSGD(lr=0.1, delta=0.5, radius=None), p, vec(0))
    # Values at 0.5: 1/8 and 27/8; x = -0.1 f / 0.5.
    assert one.round(1).item() == pytest.approx(-(0.025 + 0.675) / 2, rel=1e-14)


def test_projection_is_lazy() -> None:
    p = Quadratic(vec(1)[:, None], vec(-5)[:, None])
    federation = Federation(FedOSGD(lr=1.0, feedback="first_order", radius=2.0), p, vec(0))
    # x: 0, -5; played from -2: -5 - 3; what is sent is the point before projection.
    assert federation.round(2).item() == -2 and federation.s.x.item() == -8


@pytest.mark.parametrize("steps", [1, 4])
def test_with_gradients_and_one_game_working_together_changes_nothing(steps: int) -> None:
    algorithm = FedOSGD(lr=0.1, feedback="first_order", radius=1.0)
    x, together = run(algorithm, rounds=60 // steps, local=LocalWork(steps=steps))
    y, alone = run(algorithm, Online(DIMENSION, 2).build(1, 7, torch.float64), 1, local=LocalWork(steps=60))
    assert abs(together - alone) < 1e-14 and torch.allclose(x, y, rtol=0, atol=1e-14)
    z, apart = run(algorithm, rounds=1, local=LocalWork(steps=60))
    assert abs(apart - alone) < 1e-14 and torch.allclose(z, y, rtol=0, atol=1e-14)


def test_with_two_points_it_helps() -> None:
    task = Online(dimension=30, rank=2).build(8, 1, torch.float64)
    algorithm = FedOSGD(lr=0.02, radius=1.0)
    together, alone = (run(algorithm, task, 100 // steps, local=LocalWork(steps=steps))[1] for steps in (1, 100))
    assert together < alone


@pytest.mark.parametrize("algorithm", [FedOSGD(lr=0.05), FedPOSGD(lr=0.002, delta=0.5, radius=3.0)])
def test_learns_from_values(algorithm: Any) -> None:
    task = Quadratics(dimension=4, sigma=0.0, tau=0.0, zeta_star=0.0, B=2.0, mu=0.5).build(8, 0, torch.float64)
    x, _ = run(algorithm, task, 200, local=LocalWork(steps=5))
    assert task.evaluate(x)["suboptimality"] < 0.15 * task.evaluate(task.x0)["suboptimality"]


def test_growing_intervals_weigh_every_step_alike() -> None:
    eta, work = 0.1, LocalWork(steps=4)
    _, played = run(FedOSGD(lr=eta, feedback="first_order"), rounds=5, local=work, intervals=GrowingIntervals())
    x, losses = np.zeros(DIMENSION), []
    for t in range(20):
        score = game(t) @ (x - GAME.w.numpy())
        losses.append(abs(score))
        x = x - eta * np.sign(score) * game(t)
    assert played == pytest.approx(np.mean(losses), rel=1e-13)


@pytest.mark.parametrize(("algorithm", "calls"), [
    (FedOSGD(), {"value": 2}), (FedPOSGD(), {"value": 1}), (FedOSGD(feedback="first_order"), {"value": 1, "grad": 1})])
def test_calls_of_the_oracle_for_a_step(algorithm: Any, calls: dict[str, int]) -> None:
    count: dict[str, int] = {}

    class Counting(Quadratic):
        def value(self, x: Tensor) -> Tensor:
            count["value"] = count.get("value", 0) + 1
            return super().value(x)

        def grad(self, x: Tensor) -> Tensor:
            count["grad"] = count.get("grad", 0) + 1
            return super().grad(x)

    b = algorithm.broadcast(algorithm.server_init(vec(0, 0)))
    info = fedlearn.contracts.StepInfo(0, 0, 1)
    algorithm.local_step(algorithm.local_init(b, ()), b, (), Counting(vec(1, 1), vec(1, 1)), info)
    assert count == calls


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("algorithm", [FedOSGD(lr=0.1, delta=0.1), FedOSGD(lr=0.1, feedback="first_order"),
                                       FedPOSGD(lr=0.01)])
def test_clients_alone_and_stacked(algorithm: Any, dtype: torch.dtype, close: float) -> None:
    task = Logistic(dimension=5, samples_per_client=12).build(4, 0, dtype)
    (x, one), (y, other) = (run(algorithm, task, stack=stack) for stack in (True, False))
    assert float((x - y).double().norm() / y.double().norm()) < close and one == pytest.approx(other, rel=close)


def test_local_epochs_and_unknown_feedback_are_refused() -> None:
    with pytest.raises(ConfigError, match="local.steps: found None; allowed: a number of steps with algorithm FedOSGD"):
        run(FedOSGD(), local=LocalWork(epochs=1))
    with pytest.raises(ConfigError, match="feedback: found 'gradient'; allowed: two_point or first_order"):
        FedOSGD(feedback="gradient")
    with pytest.raises(ConfigError, match="radius"):
        FedOSGD(radius=0.0)


# --- the task ---------------------------------------------------------------------------------------------------------

def draws(task: OnlineTask, client: int, first: int, steps: int) -> Tensor:
    rng = generator(0, "local", first, client)
    return torch.stack(list(task.draws(client, rng, RoundWork(steps, None, 1, before=first))))


def test_machines_meet_the_same_losses_at_the_same_step_or_each_its_own() -> None:
    whole = draws(GAME, 0, 0, 150)
    assert torch.equal(draws(GAME, 2, 60, 10), whole[60:70]) and torch.equal(draws(GAME, 1, 0, 150), whole)
    np.testing.assert_allclose(whole[100].numpy(), game(100), rtol=0, atol=1e-15)
    assert len({tuple(a.tolist()) for a in whole}) == 150
    assert torch.allclose(whole.norm(dim=1), torch.ones(150, dtype=torch.float64))
    own = Online(dimension=DIMENSION, rank=2, identical=False).build(CLIENTS, 7, torch.float64)
    assert not torch.equal(draws(own, 0, 0, 5), draws(own, 1, 0, 5))


def test_the_whole_objective_is_the_mean_loss() -> None:
    for rank in (1, 2, 4):
        task = Online(dimension=6, rank=rank, B=2.0).build(1, 3, torch.float64)
        x = vec(1, -1, 0.5, 0, 2, 0.3)
        a = task._vectors(np.random.default_rng(0), 200_000)
        losses = (a @ (x - task.w)).abs()
        oracle = task.oracle()
        oracle.enter([0])
        assert abs(float(losses.mean()) - float(oracle.full_value(x))) < 4 * float(losses.std()) / 200_000**0.5 + 1e-12
        assert task.evaluate(x)["loss"] == pytest.approx(float(oracle.full_value(x)), rel=1e-13)
        assert task.evaluate(task.w) == pytest.approx({"loss": 0, "distance": 0}, abs=1e-12)
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(oracle.full_value(z), z)
        assert torch.allclose(oracle.full_grad(x), g, rtol=1e-13)
        assert float((task.Q @ (task.Q.mT @ task.w) - task.w).norm()) < 1e-14
        assert float(task.w.norm()) == pytest.approx(2)


def test_gradient_is_that_of_the_loss_and_the_hessian_is_zero() -> None:
    oracle, x = GAME.oracle(), vec(0.3, -0.2, 1, 0, 0.7)
    oracle.enter([0])
    oracle.at([torch.from_numpy(game(3))])
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(oracle.value(z), z)
    assert torch.allclose(oracle.grad(x), g, rtol=1e-14) and not oracle.hvp(x, x).any()
    assert oracle.loss.tolist() == oracle.value(x).tolist()


def test_travels_to_other_processes_and_counts_steps_only_where_all_do() -> None:
    again = pickle.loads(pickle.dumps(GAME))
    assert torch.equal(draws(again, 1, 70, 3), draws(GAME, 1, 70, 3))
    with pytest.raises(ConfigError, match="local.steps"):
        play(experiment(FedAvg(), 1, task=GAME, local=LocalWork(epochs=1)))
    with pytest.raises(ConfigError, match="oracle: found 'dense'"):
        GAME.oracle("dense")
    for dial, value in (("rank", 6), ("rank", 0), ("B", 0.0), ("dimension", 0)):
        with pytest.raises(ConfigError, match=f"task.{dial}"):
            Online(**{"dimension": 5, dial: value})
