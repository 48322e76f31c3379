"""The baselines in real runs: alone and stacked, two exchanges a round, and arrivals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from problems import SIZES, begin, blobs, experiment, play

from fedlearn.algorithms.fedadagrad import FedAdagrad
from fedlearn.algorithms.fedasync import FedAsync
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedavgm import FedAvgM
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.feddyn import FedDyn
from fedlearn.algorithms.fedexp import FedExP
from fedlearn.algorithms.fednova import FedNova
from fedlearn.algorithms.fedyogi import FedYogi
from fedlearn.algorithms.mime import Mime
from fedlearn.algorithms.mimelite import MimeLite
from fedlearn.contracts import ArrivalInfo, Msg, RoundInfo, Tree
from fedlearn.errors import ConfigError
from fedlearn.modifiers.averaging import Averaging
from fedlearn.policies.clock import Clock
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.protocols import synchronous
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.vectors import digest

FAMILY = [FedAvgM(lr=0.2), FedAdagrad(lr=0.2), FedYogi(lr=0.2), FedNova(lr=0.2, momentum=0.5, mu=0.1),
          FedDyn(lr=0.2, alpha=0.1), Mime(lr=0.2), MimeLite(lr=0.02, optimizer="adam", beta2=0.9, eps=0.1),
          FedExP(lr=0.2)]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["double", "float"])
@pytest.mark.parametrize("algorithm", FAMILY, ids=lambda a: type(a).__name__)
def test_clients_alone_and_stacked_agree(algorithm: Any, dtype: torch.dtype, rtol: float) -> None:
    """Three rounds of four clients with unequal numbers of steps."""
    alone, stacked = (play(experiment(algorithm, rounds=3, cohort=4, task=blobs(dtype=dtype), stack=stack,
                                      local=LocalWork(epochs=1, batch_size=5)))[0] for stack in (False, True))
    assert float((alone - stacked).norm()) <= rtol * float(alone.norm())


# --- two exchanges a round ------------------------------------------------------------------------------------------

class Kept(Mime):
    """Mime whose clients count their rounds."""

    def client_init(self, x0: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1)

    def local_finish(self, y: Any, b: Msg, c: Tree, info: Any) -> tuple[Msg, Tree]:
        return super().local_finish(y, b, c, info)[0], c + 1


@pytest.mark.parametrize("stack", [False, True])
def test_a_first_exchange_leaves_the_clients_states_alone(stack: bool) -> None:
    e = experiment(Kept(lr=0.1), rounds=3, stack=stack)
    loop, workers = begin(e)
    for r in range(3):
        loop.round(r)
        for m, version in loop.states():
            assert version == r and float(workers.worker.states.get(m, version)) == r + 1


def test_mime_sees_the_cohorts_gradient_at_the_present_model() -> None:
    e = experiment(Mime(lr=0.1), rounds=3, cohort=3, weighting=UniformWeighting(), task=blobs(dtype=torch.float64))
    loop, _ = begin(e)
    oracle = e.task.oracle()
    for r in range(3):
        x = loop.model().clone()
        report = loop.round(r)
        expected = torch.zeros_like(x)
        for m in report.cohort:
            oracle.enter([m])
            expected += oracle.full_grad(x) / 3
        torch.testing.assert_close(loop.server.c, expected, rtol=1e-9, atol=1e-12)
        assert report.bytes_down == 3 * 3 * x.numel() * 8 and report.bytes_up == 2 * 3 * x.numel() * 8


def test_mime_stops_and_continues_to_the_same_bits(tmp_path: Path) -> None:
    e = experiment(Mime(lr=0.1, optimizer="adam"), rounds=4, cohort=3)
    whole, _ = play(e)
    loop, workers = begin(e, states=tmp_path)
    loop.round(0), loop.round(1)
    tensors, meta = loop.snapshot()
    later, _ = begin(e, states=tmp_path)
    later.restore({name: t.clone() for name, t in tensors.items()}, meta)
    later.round(2), later.round(3)
    assert digest(later.model()) == digest(whole)


def test_a_first_exchange_takes_its_own_simulated_time() -> None:
    slow, local = Clock(latency=1.0, step_seconds=0.0, up_mbit=0.01, down_mbit=1e9), LocalWork(steps=3)
    mime, lite = (play(experiment(algorithm(lr=0.1), rounds=1, clock=slow, local=local))[1][0]
                  for algorithm in (Mime, MimeLite))
    assert mime.bytes_up == lite.bytes_up   # and there and back once more
    assert mime.simulated == pytest.approx(lite.simulated + 2.0)


# --- arrivals -------------------------------------------------------------------------------------------------------

SEEN: list[tuple[int, torch.Tensor, torch.Tensor]] = []


class Watched(FedAsync):
    """FedAsync that writes down the staleness, the difference and the new model of each arrival."""

    def server_update(self, s: Any, mean: Msg, info: RoundInfo) -> Any:
        after = super().server_update(s, mean, info)
        SEEN.append((info.staleness[0], mean["dx"].clone(), after.x))
        return after


@pytest.mark.parametrize("form", ["mixing", "difference"])
def test_fedasync_mixes_models(form: str) -> None:
    """Every published model of a real run with stragglers, recomputed from all models before it."""
    SEEN.clear()
    e = experiment(Watched(lr=0.2, server_lr=0.7, form=form, a=0.6), rounds=15, protocol=Asynchronous(), cohort=5,
                   clock=Clock(spread=1.5), task=blobs(dtype=torch.float64))
    loop, _ = begin(e)
    models = [loop.model().clone()]
    for r in range(15):
        loop.round(r)
        stale, dx, x = SEEN[-1]
        alpha, base = 0.7 * (stale + 1) ** -0.6, models[-1 - stale]
        mixed = (1 - alpha) * models[-1] + alpha * (base + dx)
        expected = mixed if form == "mixing" else models[-1] + alpha * dx
        torch.testing.assert_close(x, expected, rtol=1e-13, atol=1e-14)
        models.append(loop.model().clone())
    assert max(stale for stale, _, _ in SEEN) >= 2


def test_fedasync_in_differences_is_fedbuff_with_a_buffer_of_one() -> None:
    common = {"rounds": 12, "protocol": Asynchronous(), "cohort": 4, "clock": Clock(spread=1.5),
              "task": blobs(dtype=torch.float64)}
    one, _ = play(experiment(FedAsync(lr=0.2, server_lr=0.6, rho=0, form="difference"), **common))
    other, reports = play(experiment(FedBuff(lr=0.2, server_lr=0.6, buffer=1, max_staleness=4), **common))
    torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)
    assert max(report.extra["staleness"] for report in reports) > 0


def test_fedasync_alone_with_alpha_one_is_local_sgd() -> None:
    local = LocalWork(steps=3, batch_size=None)
    one, _ = play(experiment(FedAsync(lr=0.2, server_lr=1.0, rho=0.0), task=blobs((30,)), local=local,
                             protocol=Asynchronous()))
    other, _ = play(experiment(FedAvg(lr=0.2), task=blobs((30,)), local=local, stack=False))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_weights_of_stale_models() -> None:
    assert [FedAsync(a=1.0).weight(s) for s in (0, 1, 3)] == [1, 0.5, 0.25]
    assert [FedAsync().weight(s) for s in (0, 3)] == [1, 0.5]
    hinge = FedAsync(staleness="hinge")
    assert [hinge.weight(s) for s in (0, 4, 5, 6)] == pytest.approx([1, 1, 1 / 11, 1 / 21])
    assert [FedAsync(staleness="hinge", a=1, b=0).weight(s) for s in (0, 1, 3)] == [1, 0.5, 0.25]
    assert FedAsync(staleness="constant").weight(9) == 1
    assert [FedAsync(max_staleness=2).arrival_weight(ArrivalInfo(0, s, 9)) for s in (2, 3)] == [1, 0]
    assert FedBuff(average_staleness=3).arrival_weight(ArrivalInfo(0, 0, 9)) == 2
    assert FedBuff(average_staleness=3).arrival_weight(ArrivalInfo(0, 3, 9)) == 1


def test_fedbuff_with_momentum_is_fedavgm_where_speeds_are_equal() -> None:
    local, task = LocalWork(steps=3, batch_size=None), blobs(dtype=torch.float64)
    sync, _ = play(experiment(FedAvgM(lr=0.2, server_lr=0.5, momentum=0.7), weighting=UniformWeighting(), local=local,
                              stack=False, task=task))
    buffered, _ = play(experiment(FedBuff(lr=0.2, server_lr=0.5, buffer=len(SIZES), momentum=0.7), local=local,
                                  protocol=Asynchronous(), task=task))
    torch.testing.assert_close(sync, buffered, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("wrong", "key"), [
    ({"staleness": "hinges"}, "staleness"), ({"b": 3.0}, "b"), ({"staleness": "constant", "a": 1.0}, "a"),
    ({"form": "sum"}, "form"), ({"max_staleness": None}, "max_staleness"), ({"server_lr": 1.5}, "server_lr"),
    ({"staleness": "hinge", "a": -1.0}, "a"),
])
def test_wrong_choices_of_fedasync_name_their_key(wrong: dict, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        FedAsync(**wrong)
    assert error.value.key == f"algorithm.{key}" and "\n" not in str(error.value)


# --- together with the rest -----------------------------------------------------------------------------------------

def test_a_first_exchange_goes_on_inside_an_average_over_rounds() -> None:
    averaged = experiment(Averaging(over="rounds").around(Mime(lr=0.1)), rounds=3)
    loop, _ = begin(averaged)
    models = []
    for r in range(3):
        loop.round(r)
        models.append(play(experiment(Mime(lr=0.1), rounds=r + 1))[0])
    assert torch.equal(loop.server.inner.x, models[-1])
    torch.testing.assert_close(loop.model(), torch.stack(models).mean(0), rtol=1e-6, atol=1e-7)


def test_a_large_model_of_mime_is_updated_in_pieces_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = play(experiment(Mime(lr=0.1, optimizer="adam"), rounds=2))
    monkeypatch.setattr(synchronous, "PIECE", 7)
    pieces, _ = play(experiment(Mime(lr=0.1, optimizer="adam"), rounds=2))
    assert torch.equal(whole, pieces)


class Everybody(FedAvg):
    """FedAvg as if it needed all clients."""

    everybody = True


def test_partial_participation_is_refused_where_an_algorithm_forbids_it() -> None:
    experiment(Everybody())
    with pytest.raises(ConfigError) as error:
        experiment(Everybody(), cohort=3)
    assert error.value.key == "cohort" and "algorithm Everybody" in str(error.value) and "\n" not in str(error.value)


def test_fedasync_stops_and_continues_to_the_same_bits() -> None:
    """The models that the server keeps are part of its state."""
    e = experiment(FedAsync(lr=0.2), rounds=10, protocol=Asynchronous(), cohort=4, clock=Clock(spread=1.5))
    whole, reports = play(e)
    assert max(report.extra["staleness"] for report in reports[5:]) > 0
    loop, _ = begin(e)
    for r in range(5):
        loop.round(r)
    tensors, meta = loop.snapshot()
    later, _ = begin(e)
    later.restore({name: t.clone() for name, t in tensors.items()}, meta)
    for r in range(5, 10):
        later.round(r)
    assert digest(later.model()) == digest(whole)
