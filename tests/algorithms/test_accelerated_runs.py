"""Accelerated methods, two stages and the single machine in real runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import blobs, experiment
from torch import Tensor

import fedlearn
from benchmarks.papers import r3b
from fedlearn.algorithms.fedac import FedAc
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.local_acsa import LocalACSA
from fedlearn.algorithms.minibatch_acsa import MinibatchACSA
from fedlearn.algorithms.single_machine_sgd import SingleMachineSGD
from fedlearn.algorithms.two_stage import TwoStage
from fedlearn.errors import ConfigError
from fedlearn.modifiers.averaging import Averaging
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import FullParticipation, OneMachine, UniformSampling
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.running.execute import History
from fedlearn.tasks.quadratic import QuadraticTask

FAMILY = [MinibatchACSA(), MinibatchACSA(mu=0.1), FedAc(), FedAc("II"), LocalACSA(lr=0.02), TwoStage(),
          TwoStage(switch="drift", at=2.0)]
# A problem in two dimensions whose local fixed point is known: optimum (11, 12), mean of the clients' optima (10, 11).
DIAGONALS = torch.tensor([[1, 2], [1, 1], [6, 1], [4, 1], [3, 5]], dtype=torch.float64)
OPTIMA = torch.tensor([[5, 5], [15, 5], [15, 10], [10, 20], [5, 15]], dtype=torch.float64)


def run(algorithm: Any, task: Any, rounds: int, steps: int, batch: int | None = 1, **choices: Any) -> History:
    options = {"sampling": FullParticipation(), "weighting": UniformWeighting(), "progress": "none",
               "evaluate_every": 0, **choices}
    return fedlearn.run(algorithm=algorithm, task=task, rounds=rounds, local=LocalWork(steps=steps, batch_size=batch),
                        **options)


def five_clients() -> QuadraticTask:
    return QuadraticTask(torch.diag_embed(DIAGONALS), OPTIMA, torch.zeros(2, dtype=torch.float64))


def fixed_point(eta: float, steps: int) -> Tensor:
    """Return C^-1 mean_m C_m x*_m with C_m = I - (I - eta A_m)^K and C their mean."""
    C = 1 - (1 - eta * DIAGONALS) ** steps
    return (C * OPTIMA).mean(0) / C.mean(0)


@pytest.mark.parametrize("algorithm", FAMILY, ids=lambda a: f"{type(a).__name__}-{getattr(a, 'mu', '')}")
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-12, 1e-13), (torch.float32, 1e-6, 2e-6)])
def test_clients_alone_and_stacked_end_alike(algorithm: Any, dtype: torch.dtype, rtol: float, atol: float) -> None:
    alone, stacked = (run(algorithm, blobs(dtype=dtype), 4, 3, 4, stack=stack).x for stack in (False, True))
    torch.testing.assert_close(alone, stacked, rtol=rtol, atol=atol)


@pytest.mark.parametrize("method", r3b.METHODS)
def test_on_equal_quadratics_with_shared_noise_the_interval_does_not_matter(method: str) -> None:
    often, seldom, once = (r3b.final(r3b.METHODS[method], 0, K) for K in (1, 16, 64))
    torch.testing.assert_close(seldom, often, rtol=0, atol=1e-13)
    torch.testing.assert_close(once, often, rtol=0, atol=1e-13)
    assert (often - r3b.task(0).optimum).norm() > 1e-3     # there is noise


def test_a_restarted_counter_would_matter() -> None:
    """The theorem is about one step counter: with a new one in each round local AC-SA depends on K."""

    class Restarted(LocalACSA):
        def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
            return super().local_step(y, b, c, oracle, replace(info, t=info.k))

    assert (r3b.final(Restarted(lr=0.2), 0, 16) - r3b.final(LocalACSA(lr=0.2), 0, 16)).norm() > 1e-3


@pytest.mark.parametrize("server_lr", [1.0, 1.4])
def test_local_gd_ends_at_its_fixed_point(server_lr: float) -> None:
    for steps, rounds, away in ((2, 60, 0.649), (10, 30, 1.448), (100, 30, 2**0.5)):
        x = run(FedAvg(lr=1 / 7, server_lr=server_lr), five_clients(), rounds, steps, stack=True).x
        torch.testing.assert_close(x, fixed_point(1 / 7, steps), rtol=0, atol=1e-9)
        assert float((x - five_clients().optimum).norm()) == pytest.approx(away, abs=6e-4)


@pytest.mark.parametrize(("switch", "at"), [("round", 10), ("fraction", 0.2), ("drift", 2.0)])
def test_two_stages_end_at_the_optimum(switch: str, at: float) -> None:
    algorithm = TwoStage(lr=1 / 7, minibatch_lr=0.3, switch=switch, at=at)
    history = run(algorithm, five_clients(), 80, 10, stack=True)
    assert history.final("test_distance") < 1e-8
    stages = [line["stage"] for line in history.metrics[1:]]
    assert stages[0] == 1 and stages[-1] == 2 and sorted(stages) == stages


def test_what_depends_on_the_number_of_rounds_cannot_be_continued_for_more() -> None:
    for switch, at, depends in (("fraction", 0.5, True), ("round", 2, False)):
        assert ("rounds" in experiment(TwoStage(switch=switch, at=at)).identity()) is depends


def test_a_single_machine_is_sgd_on_one_client_and_nothing_travels() -> None:
    task, one = r3b.task(3), OneMachine(2)
    x = torch.zeros_like(task.x0)
    for noise in task.noise[2]:
        x = x - 0.3 * (task.A[2] @ (x - task.optima[2]) + noise)
    for steps in (1, 16):
        history = run(SingleMachineSGD(lr=0.3), task, 64 // steps, steps, sampling=one)
        torch.testing.assert_close(history.x, x, rtol=1e-13, atol=1e-13)
        assert all(line["bytes_up"] == line["bytes_down"] == 0 and line["clients"] == 1
                   for line in history.metrics[1:])
    again = run(FedAvg(lr=0.3), task, 4, 16, sampling=one, cohort=1)
    torch.testing.assert_close(again.x, x, rtol=1e-13, atol=1e-13)


def test_a_single_machine_accelerates_too() -> None:
    task, x, y = r3b.task(3), np.zeros(r3b.DIMENSION), np.zeros(r3b.DIMENSION)
    A, optimum = task.A[0].numpy(), task.optima[0].numpy()
    for t, noise in enumerate(task.noise[0].numpy(), 1):
        b = (t + 1) / 2
        md = y / b + (1 - 1 / b) * x
        y = y - 0.2 * t / 2 * (A @ (md - optimum) + noise)
        x = y / b + (1 - 1 / b) * x
    history = run(LocalACSA(lr=0.2), task, 4, 16, sampling=OneMachine())
    torch.testing.assert_close(history.x, torch.from_numpy(x), rtol=1e-12, atol=1e-12)
    assert history.final("bytes_up") == 0


def test_the_average_over_the_steps_of_a_minibatch_method_is_that_of_where_it_took_gradients() -> None:
    task, points = r3b.task(0), []

    class Noted(MinibatchACSA):
        def broadcast(self, s: Any) -> Any:
            if not s.md.is_meta:    # the estimate of memory works shapes out
                points.append(s.md)
            return super().broadcast(s)

    x = run(Noted(lr=0.2), task, 8, 4, modifiers={"averaging": Averaging(over="steps")}).x
    rounds = {tuple(p.tolist()): p for p in points}     # a broadcast may be asked for more than once
    torch.testing.assert_close(x, torch.stack(list(rounds.values())[:8]).mean(0), rtol=1e-12, atol=1e-12)


def test_one_machine_is_not_everybody_and_has_no_asynchronous_server() -> None:
    class Everybody(FedAvg):
        everybody = True

    with pytest.raises(ConfigError, match="only defined with full participation"):
        run(Everybody(), r3b.task(0), 1, 1, sampling=OneMachine())
    run(Everybody(), r3b.task(0, clients=1), 1, 1, sampling=OneMachine())
    with pytest.raises(ConfigError, match="sampling: found 'one'; allowed: another with protocol=asynchronous"):
        run(FedBuff(buffer=1), r3b.task(0), 1, 1, sampling=OneMachine())


@pytest.mark.parametrize(("choices", "line"), [
    ({"sampling": UniformSampling()},
     "sampling: found 'uniform'; allowed: one with algorithm SingleMachineSGD. It is of one machine."),
    ({"sampling": OneMachine(9)}, "sampling.client: found 9; allowed: 0 to 7, the clients' ids."),
    ({"sampling": OneMachine(), "cohort": 2}, "cohort: found 2; allowed: 1 or null with sampling=one. Only one client "
                                              "ever works."),
])
def test_a_single_machine_needs_its_sampling(choices: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(SingleMachineSGD(), r3b.task(0), 1, 1, **choices)
    assert str(error.value) == line
