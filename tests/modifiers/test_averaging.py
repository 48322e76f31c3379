"""Output averaging: what is evaluated is the average that is promised, and training goes on as without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import SIZES, blobs, experiment, play
from torch import Tensor

import fedlearn
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.local_adam import LocalAdam
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.combinations import modified
from fedlearn.config.assemble import experiment as assembled
from fedlearn.config.compose import compose
from fedlearn.contracts import Modifier, ServerAlgorithm
from fedlearn.errors import ConfigError
from fedlearn.modifiers.averaging import Averaging, OverSteps
from fedlearn.modifiers.wrapped import Wrapped
from fedlearn.policies.intervals import GrowingIntervals
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.schedule import Power
from fedlearn.policies.weighting import RatioWeighting
from fedlearn.seeds import generator
from fedlearn.worker.worker import Worker

ROUNDS, STEPS = 4, 3


def run(algorithm: ServerAlgorithm, *around: Modifier, **choices: Any) -> Tensor:
    """Return the final model of a run in float64, with modifiers."""
    choices = {"task": blobs(dtype=torch.float64), "rounds": ROUNDS, "local": LocalWork(steps=STEPS), "cohort": 4,
               **choices}
    algorithm, task = modified(algorithm, choices.pop("task"), {str(i): m for i, m in enumerate(around)})
    return play(experiment(algorithm, task=task, **choices))[0]


def close(a: Tensor, b: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-13)


@dataclass(frozen=True)
class Spying(Wrapped):
    """Writes down (round, k, t, client, iterate) of every local step, and the server's models."""

    seen: list[Any]
    models: list[Tensor]
    at: list[int]

    def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
        y = self.inner.local_step(y, b, c, oracle, info)
        self.seen.append((info.round, info.k, info.t, self.at[-1], self.inner.iterate(y).clone()))
        return y

    def server_update(self, s: Any, mean: Any, info: Any) -> Any:
        s = self.inner.server_update(s, mean, info)
        self.models.append(self.inner.model(s).clone())
        return s


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put a spy around an algorithm."""
    at: list[int] = []
    enter = Worker._enter
    monkeypatch.setattr(Worker, "_enter", lambda self, work, ids, draws: (at.extend(ids),
                                                                          enter(self, work, ids, draws)))
    yield lambda algorithm: Spying(algorithm, [], [], at)


ALGORITHMS = [FedAvg(lr=0.2, server_lr=1.4), Scaffold(lr=0.2), LocalAdam(lr=0.05)]


def named(algorithm: Any) -> str:
    return type(algorithm).__name__


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=named)
@pytest.mark.parametrize(("power", "start"), [(0.0, 0), (2.0, 0), (0.0, 2), (1.0, 3)])
def test_over_steps_is_the_average_of_all_local_iterates(algorithm: ServerAlgorithm, power: float, start: int, spy: Any
                                                         ) -> None:
    """Clients of unequal size and weight, part of them in each round."""
    watched = spy(algorithm)
    found = run(watched, Averaging("steps", power, start), stack=False)
    assert len(watched.seen) == ROUNDS * 4 * STEPS
    total, weights = torch.zeros_like(found), 0.0
    for r in range(start, ROUNDS):
        steps = [step for step in watched.seen if step[0] == r]
        cohort = sum(SIZES[m] for m in {step[3] for step in steps})
        for _, k, t, m, y in steps:
            assert t == r * STEPS + k
            w = (t + 1) ** power * SIZES[m] / cohort
            total, weights = total + w * y, weights + w
    close(found, total / weights)
    assert (found - watched.models[-1]).norm() > 1e-3


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, MinibatchSGD(lr=0.2)], ids=named)
@pytest.mark.parametrize(("power", "start"), [(0.0, 0), (2.0, 0), (1.0, 2)])
def test_over_rounds_is_the_average_of_the_servers_models(algorithm: ServerAlgorithm, power: float, start: int,
                                                          spy: Any) -> None:
    watched = spy(algorithm)
    found = run(watched, Averaging("rounds", power, start), stack=False)
    w = [(r - start + 1) ** power if r >= start else 0.0 for r in range(ROUNDS)]
    close(found, sum(wr * x for wr, x in zip(w, watched.models, strict=True)) / sum(w))


@pytest.mark.parametrize("over", ["rounds", "steps"])
def test_until_something_counts_it_is_the_last_model(over: str) -> None:
    close(run(FedAvg(lr=0.2), Averaging(over, start=ROUNDS)), run(FedAvg(lr=0.2)))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=named)
def test_training_goes_on_as_without_it(algorithm: ServerAlgorithm, spy: Any) -> None:
    """The iterates are the same to the bit."""
    plain, rounds, steps = spy(algorithm), spy(algorithm), spy(algorithm)
    run(plain)
    run(rounds, Averaging("rounds"))
    run(steps, Averaging("steps"))
    for other in (rounds, steps):
        assert all(torch.equal(a, b) for a, b in zip(plain.models, other.models, strict=True))


def test_averages_are_nested_as_any_modifiers() -> None:
    inner, outer = Averaging("steps"), Averaging("rounds")
    both = run(FedAvg(lr=0.2), inner, outer)
    path = [run(FedAvg(lr=0.2), inner, rounds=r) for r in range(1, ROUNDS + 1)]
    close(both, sum(path) / ROUNDS)


def test_over_steps_of_a_method_without_local_iterates_stays_at_its_models(spy: Any) -> None:
    watched = spy(MinibatchSGD(lr=0.2))
    x0 = blobs(dtype=torch.float64).initial(0)
    close(run(watched, Averaging("steps")), sum([x0, *watched.models[:-1]]) / ROUNDS)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=named)
@pytest.mark.parametrize("averaging", [Averaging("steps", power=1), Averaging("rounds")], ids=lambda a: a.over)
def test_alone_and_stacked_alike(algorithm: ServerAlgorithm, averaging: Averaging) -> None:
    alone, stacked = (run(algorithm, averaging, stack=stack, oracle="vmap" if stack else "auto")
                      for stack in (False, True))
    assert (alone - stacked).norm() <= 1e-12 * alone.norm()
    single, several = (run(algorithm, averaging, stack=stack, oracle="vmap" if stack else "auto", task=blobs())
                       for stack in (False, True))
    assert (single - several).norm() <= 1e-6 * single.norm() and (single - alone).norm() < 1e-4


def test_clients_with_unequal_steps_average_each_their_own(spy: Any) -> None:
    """In a stack clients finish one after another."""
    watched = spy(FedAvg(lr=0.2))
    epochs = {"local": LocalWork(epochs=1, batch_size=5), "rounds": 1, "cohort": None}
    alone = run(watched, Averaging("steps"), stack=False, **epochs)
    means = [torch.stack([y for *_, m, y in watched.seen if m == client]).mean(0) for client in range(len(SIZES))]
    close(alone, sum(n * x for n, x in zip(SIZES, means, strict=True)) / sum(SIZES))
    close(run(FedAvg(lr=0.2), Averaging("steps"), stack=True, oracle="vmap", **epochs), alone)


def test_averaging_of_averages() -> None:
    """One round over each client's stream, steps c t^-alpha, an average of averages by the streams' lengths."""
    task, seed, local = blobs(dtype=torch.float64), 5, LocalWork(epochs=1, batch_size=1)
    found = run(FedAvg(lr=0.5), Averaging("steps"), task=task, rounds=1, cohort=None, seed=seed, local=local,
                schedule=Power(alpha=0.66, by_step=True), weighting=RatioWeighting())
    expected = torch.zeros_like(found)
    oracle = task.oracle()
    for m, n in enumerate(SIZES):
        y, total = task.initial(seed).clone(), torch.zeros_like(found)
        draws = task.draws(m, generator(seed, "local", 0, m), local)
        assert len(draws) == n
        oracle.enter([m], [draws])
        for t, draw in enumerate(draws, start=1):
            oracle.at([draw])
            y = y - 0.5 * t**-0.66 * oracle.grad(y)
            total = total + y
        expected += n / sum(SIZES) * total / n
    close(found, expected)
    with pytest.raises(ConfigError, match=r"local\.steps"):  # t is not the same for all clients in a second round
        run(FedAvg(lr=0.5), Averaging("steps"), rounds=2, local=local, schedule=Power(by_step=True))


def test_the_recipe_of_averaging_of_averages_composes() -> None:
    """As the schedules' docstring gives it; clients are of unequal size and take as many steps as they have samples."""
    e = assembled(compose(["task=digits", "model=softmax", "clients=4", "cohort=null", "rounds=1", "local.epochs=1",
                           "local.batch_size=1", "schedule=power", "schedule.by_step=true", "modifiers=[averaging]",
                           "weighting=ratio"]))
    work = e.plan(0)
    assert [work.steps_for(int(n)) for n in e.task.sizes] == e.task.sizes.tolist() and len(set(e.task.sizes)) > 1
    assert isinstance(e.algorithm, OverSteps) and e.schedule.by_step and e.weighting == RatioWeighting()


class Stop(Exception):
    """Ends a run in its middle."""


class Stopping:
    """A tracker that ends the run after a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def started(self, folder: Any, config: Any) -> None: ...

    def round(self, metrics: Any) -> None:
        if metrics["round"] == self.after:
            raise Stop

    def finished(self, summary: Any) -> None: ...


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=named)
@pytest.mark.parametrize("averaging", [Averaging("steps", 1, start=1), Averaging("rounds", start=3)],
                         ids=lambda a: a.over)
def test_a_resumed_run_ends_in_the_same_hash(algorithm: ServerAlgorithm, averaging: Averaging, tmp_path: Path) -> None:
    """Interrupted in the middle of growing intervals, before and after the averaging began."""
    choices: dict[str, Any] = {
        "algorithm": algorithm, "task": blobs(), "rounds": 5, "local": LocalWork(steps=4), "cohort": 4,
        "intervals": GrowingIntervals(), "modifiers": {"averaging": averaging}, "progress": "none",
        "checkpoint_every": 1, "evaluate_every": 0}
    whole = fedlearn.run(**choices)
    with pytest.raises(Stop):
        fedlearn.run(**choices, folder=tmp_path / "run", trackers=[Stopping(2)])
    assert fedlearn.run(**choices, folder=tmp_path / "run", resume=True).sha256 == whole.sha256


@pytest.mark.torchrun
def test_two_ranks_end_in_the_same_bits() -> None:
    """With client states, unequal intervals and partial participation as well."""
    choices: dict[str, Any] = {"intervals": GrowingIntervals(), "local": LocalWork(steps=4), "rounds": 3}
    algorithm, averaging = Scaffold(lr=0.2), Averaging("steps", 1)
    assert torch.equal(run(algorithm, averaging, backend=Torchrun(workers=2), **choices),
                       run(algorithm, averaging, **choices))


@pytest.mark.parametrize(("wrong", "key"), [({"over": "epochs"}, "over"), ({"power": -1}, "power"),
                                            ({"power": float("nan")}, "power"), ({"start": -1}, "start")])
def test_wrong_fields_name_their_key(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as e:
        Averaging(**wrong)
    assert e.value.key == key


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ConfigError) as e:
        modified(FedBuff(), blobs(), {"averaging": Averaging()})
    assert e.value.key == "modifiers.averaging"
    with pytest.raises(ConfigError) as e:
        run(FedAvg(), Averaging("steps", power=1), local=LocalWork(epochs=1))
    assert e.value.key == "local.steps"
    run(FedAvg(), Averaging("steps"), local=LocalWork(epochs=1), rounds=1)


def test_polyak_ruppert_beats_the_last_iterate_of_large_steps() -> None:
    """With noise and constant steps the last iterate stays away; the average of the tail comes close."""
    from fedlearn.tasks.quadratic import QuadraticTask
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.standard_normal((3, 4)))
    task = QuadraticTask(torch.eye(4, dtype=torch.float64).expand(3, 4, 4).contiguous(), target,
                         torch.zeros(4, dtype=torch.float64), sigma=3.0)
    choices: dict[str, Any] = {"task": task, "rounds": 60, "local": LocalWork(steps=20, batch_size=1), "cohort": None}
    last = run(FedAvg(lr=0.3), **choices)
    mean = run(FedAvg(lr=0.3), Averaging("steps", start=5), **choices)
    assert (mean - task.optimum).norm() < (last - task.optimum).norm() / 4
