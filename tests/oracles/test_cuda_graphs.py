"""The graphs oracle: what is recorded and replayed, what is refused, and whole runs against autograd."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from oracles.nets import far, federation, net
from problems import experiment, play
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.errors import ConfigError
from fedlearn.models.cnn import CNN
from fedlearn.oracles import choose, cuda_graphs
from fedlearn.oracles.cuda_graphs import Graphs
from fedlearn.oracles.layers import DoesNotFit
from fedlearn.policies.local_work import LocalWork
from fedlearn.tasks.supervised import SupervisedTask

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Repeated(Graphs):
    """On a CPU a recording is played by running it again, on the memory that it was recorded with."""

    def __init__(self, *args: Any) -> None:
        self.recorded = self.replayed = 0
        super().__init__(*args, record=None if args[0][-1].weight.is_cuda else self.repeat)
        self.recorded = self.replayed = 0

    def repeat(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        weights = [p.data for p in self.parameters]

        def replay() -> None:
            self.replayed += 1
            bound = [p.data for p in self.parameters]
            for p, data in zip(self.parameters, weights, strict=True):
                p.data = data
            run()
            for p, data in zip(self.parameters, bound, strict=True):
                p.data = data

        run()
        return replay


class Masked(nn.Module):
    """A constant buffer, and whatever else a test puts into its forward pass."""

    def __init__(self, more: Callable[[Masked, Tensor], Tensor] = lambda self, x: x) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 1, 0, 2], dtype=torch.float64))
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self, x * self.mask)


def faked(task: SupervisedTask, precision: str = "float32") -> Repeated:
    return Repeated(deepcopy(task.model), task.criterion, task.store, task.prepare, precision)


def masked(more: Callable[[Masked, Tensor], Tensor] = lambda self, x: x) -> SupervisedTask:
    return federation(nn.Sequential(Masked(more), *net(3)))


def lengths(*sizes: int) -> list[Tensor]:
    return [torch.arange(n) for n in sizes]


@pytest.mark.parametrize("device", DEVICES)
def test_every_step_equals_autograds_whatever_was_asked_before(device: str) -> None:
    task = masked().to(device)
    plain = task.oracle("autograd")
    ours = faked(task) if device == "cpu" else task.oracle("graphs")
    for seed, client in enumerate((3, 1, 3, 5)):
        torch.manual_seed(seed)
        draws = [torch.randperm(12)[:n] for n in (5, 5, 2, 5, 4, 4)]
        for oracle in (plain, ours):
            oracle.enter([client], [draws])
        for draw in draws:
            x = task.initial(0) + 0.1 * torch.randn_like(task.x0)
            before = x.clone()
            for oracle in (plain, ours):
                oracle.at([draw])
            assert far(ours.grad(x), plain.grad(x)) < 1e-12
            for call in ("value", "full_grad"):
                assert far(getattr(ours, call)(x), getattr(plain, call)(x)) < 1e-12
            assert far(ours.hvp(x, x), plain.hvp(x, x)) < 1e-12
            assert torch.equal(x, before)
        assert ours.calls == 6 and far(ours.loss, plain.loss) < 1e-12


def test_lengths_that_come_again_in_the_clients_own_work_are_replayed_and_no_others() -> None:
    oracle = faked(masked())
    seen = []
    for client, draws in ((3, lengths(5, 5, 3)), (1, lengths(5, 5, 5)), (5, lengths(3)), (3, lengths(5, 3, 3)),
                          (2, None)):
        oracle.enter([client], None if draws is None else [draws])
        for draw in draws or lengths(5, 5):
            oracle.at([draw])
            oracle.grad(torch.ones_like(oracle.weights))
        seen.append((oracle.recorded, oracle.replayed))
    assert seen == [(1, 2), (1, 5), (1, 5), (2, 7), (2, 7)]


def test_the_recording_that_was_not_used_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "KEPT", 2)
    oracle = faked(masked())
    for n, recorded in ((2, 1), (3, 2), (2, 2), (4, 3), (2, 3), (3, 4)):
        draws = lengths(n, n)
        oracle.enter([3], [draws])
        for draw in draws:
            oracle.at([draw])
            oracle.grad(torch.ones_like(oracle.weights))
        assert oracle.recorded == recorded and len(oracle.recordings) <= 2


def count(module: Masked, x: Tensor) -> Tensor:
    module.mask.add_(1)
    return x


def replace(module: Masked, x: Tensor) -> Tensor:
    module.mask = module.mask + 1
    return x


@pytest.mark.parametrize(("more", "why"), [
    (lambda self, x: F.dropout(x, 0.5, self.training), "it draws random numbers"),
    (count, "it writes to its buffers"), (replace, "it writes to its buffers")])
def test_a_model_whose_recording_would_repeat_a_moments_state_is_refused(
        more: Callable[[Masked, Tensor], Tensor], why: str) -> None:
    with pytest.raises(DoesNotFit, match=why):
        faked(masked(more))


def test_a_buffer_stays_where_a_recording_reads_it() -> None:
    oracle = faked(masked())
    mask = oracle.model[0].mask
    oracle.enter([3], [lengths(4, 4)])
    assert oracle.model[0].mask is mask


def test_what_cannot_be_recorded_is_refused_in_one_line() -> None:
    def record(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    task = masked()
    with pytest.raises(DoesNotFit, match=r"^CUDA cannot record it \(operation not permitted .* capturing\)$"):
        Graphs(task.model, task.criterion, task.store, task.prepare, record=record)


def test_it_needs_a_cuda_device_and_is_never_chosen_unasked() -> None:
    task = federation(net(3))
    with pytest.raises(ConfigError, match="oracle: found 'graphs'; allowed: auto or autograd .*it is on cpu, and CUDA"
                       ) as caught:
        task.oracle("graphs")
    assert "\n" not in str(caught.value)
    assert choose.graphs not in choose.AUTO


def test_it_says_what_it_does() -> None:
    assert faked(federation(net(3))).describe() == (
        "autograd (Sequential, 74 parameters, steps replayed as CUDA graphs)")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1), Scaffold(lr=0.05)], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whole_runs_equal_those_of_autograd(device: str, dtype: torch.dtype, algorithm: Any,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    if device == "cpu":
        monkeypatch.setitem(choose.KINDS, "graphs", lambda p: made.append(Repeated(
            deepcopy(p.model), p.criterion, p.store, p.prepare, p.precision)) or made[-1])
    more = {"backend": Torchrun(workers=1, devices="cuda")} if device == "cuda" else {}
    for local in (LocalWork(epochs=2, batch_size=5), LocalWork(steps=3, batch_size=0)):
        x, again, expected = (
            play(experiment(algorithm, 3, local=local, cohort=5, oracle=oracle, **more, task=federation(
                CNN(2, 8).build((1, 8, 8), 3), dtype=dtype, shape=(1, 8, 8))))[0]
            for oracle in ("graphs", "graphs", "autograd"))
        assert torch.equal(x, again)
        assert far(x, expected) < (1e-12 if dtype == torch.float64 else 1e-6)
    assert device == "cuda" or sum(oracle.replayed for oracle in made) > 100
