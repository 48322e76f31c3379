"""A server that sees every upload by itself: the same uploads and bits wherever clients work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from backends.unruly import poisoned
from problems import blobs, experiment, play

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.config.compose import compose
from fedlearn.contracts import Msg, RoundInfo, ServerState, Stage
from fedlearn.errors import NonFiniteUpdate
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.sampling import UniformSampling
from fedlearn.policies.weighting import RatioWeighting, SchemeTwo
from fedlearn.running.perform import perform
from fedlearn.vectors import digest

COMMON = ["task=digits", "clients=11", "cohort=4", "heterogeneity=dirichlet", "heterogeneity.alpha=0.3", "rounds=4",
          "algorithm=ada_gd", "algorithm.lr=1.0", "algorithm.eps=0.8", "local.steps=2", "seed=3", "progress=none",
          "evaluate.every=0"]
BACKENDS = {"in process": ["backend=inprocess"], "torchrun": ["backend=torchrun", "backend.workers=3"],
            "ray": ["backend=ray", "backend.workers=2"]}
MORE = {"alone": ["stack=false"], "float64": ["dtype=float64", "stack=false"],
        "defection": ["modifiers=[defection]", "modifiers.defection.eps=1.0"]}


def sha(place: str, more: str, runs: Path) -> str:
    return perform(compose([*COMMON, *BACKENDS[place], *MORE[more], f"runs={runs}"]))[1].sha256


@pytest.mark.torchrun
@pytest.mark.parametrize("more", MORE)
def test_on_torchrun_ranks_the_result_is_the_same(more: str, tmp_path: Path) -> None:
    assert sha("torchrun", more, tmp_path) == sha("in process", more, tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_actors_too(tmp_path: Path) -> None:
    assert sha("ray", "defection", tmp_path) == sha("in process", "defection", tmp_path)


@dataclass(frozen=True)
class Keeps(FedAvg):
    """Averages what it sees, and keeps it."""

    individual: ClassVar[bool] = True
    seen: list[Any] = field(default_factory=list)

    def server_update(self, s: ServerState, mean: Msg, info: RoundInfo) -> ServerState:
        self.seen.append(({name: v.clone() for name, v in mean.items()}, info))
        weights = torch.tensor(info.weights).to(s.x)
        return ServerState(s.x + self.server_lr * weights @ mean["dx"])


@dataclass(frozen=True)
class Negative(Stage):
    """Sends minus the upload."""

    def encode(self, msg: Msg, client: int, round: int) -> Msg:
        return {name: -v for name, v in msg.items()}

    def decode(self, mean: Msg) -> Msg:
        assert all(v.dim() == 1 for v in mean.values())
        return {name: -v for name, v in mean.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduce", ["exact", "fast"])
@pytest.mark.parametrize("weighting", [RatioWeighting(), SchemeTwo()])
@pytest.mark.parametrize("pipeline", [{}, {"negative": Negative()}])
def test_sees_every_upload_in_the_order_of_the_clients(dtype: torch.dtype, reduce: str, weighting: Any,
                                                       pipeline: dict[str, Stage]) -> None:
    task, local = blobs(dtype=dtype), LocalWork(epochs=2, batch_size=5)
    choices = {"task": task, "local": local, "reduce": reduce, "weighting": weighting, "cohort": 3, "stack": False,
               "pipeline": pipeline}
    algorithm = Keeps(lr=0.2)
    x, reports = play(experiment(algorithm, 3, **choices))
    y, _ = play(experiment(FedAvg(lr=0.2), 3, **choices))
    assert torch.allclose(x, y, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-7)
    first, info = algorithm.seen[0]
    assert list(info.clients) == sorted(reports[0].cohort) and first["dx"].shape == (3, task.x0.numel())
    for i, m in enumerate(info.clients):
        # A client that works alone in the same round sends the same.
        alone = Keeps(lr=0.2)
        play(experiment(alone, 1, **{**choices, "cohort": 1, "sampling": chosen(m)}))
        assert torch.equal(alone.seen[0][0]["dx"][0], first["dx"][i])


def chosen(m: int) -> Any:
    """A sampling of one client."""
    class One(UniformSampling):
        def cohort(self, *args: Any, **more: Any) -> Any:
            ids, counts = super().cohort(*args, **more)
            return ids * 0 + m, counts

    return One()


def test_stacked_it_sees_the_same() -> None:
    one, other = Keeps(lr=0.2), Keeps(lr=0.2)
    for algorithm, stack in ((one, True), (other, False)):
        play(experiment(algorithm, 2, task=blobs(dtype=torch.float64), stack=stack, local=LocalWork(epochs=1)))
    for (a, _), (b, _) in zip(one.seen, other.seen, strict=True):
        assert torch.allclose(a["dx"], b["dx"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("stack", [True, False])
def test_a_number_that_is_none_is_its_clients(stack: bool) -> None:
    with pytest.raises(NonFiniteUpdate) as error:
        play(experiment(Keeps(), 1, task=poisoned(3), stack=stack))
    assert error.value.client == 3


def test_two_runs_have_the_same_bits() -> None:
    assert len({digest(play(experiment(Keeps(), 2, cohort=3))[0]) for _ in range(2)}) == 1


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("reduce", ["exact", "fast"])
def test_the_places_of_refused_clients_are_left_out(stack: bool, reduce: str) -> None:
    algorithm, all_good = Keeps(lr=0.2), Keeps(lr=0.2)
    choices = {"stack": stack, "reduce": reduce, "local": LocalWork(steps=2, batch_size=None)}
    _, (report,) = play(experiment(algorithm, 1, task=poisoned(3), on_bad_update="refuse", **choices))
    play(experiment(all_good, 1, **choices))
    (seen, info), (whole, _) = algorithm.seen[0], all_good.seen[0]
    assert list(info.clients) == [0, 1, 2, 4, 5] == [record.client for record in report.records]
    assert sum(info.weights) == pytest.approx(1)
    assert torch.equal(seen["dx"], whole["dx"][[0, 1, 2, 4, 5]])
