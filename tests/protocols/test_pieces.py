"""Large models are updated in place, piece by piece: the same bits as at once, wherever that may be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from problems import blobs, experiment, play

from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.contracts import Msg, RoundInfo, ServerState, Stage, Tree, Vec
from fedlearn.pipeline.clip import Clip
from fedlearn.protocols import synchronous
from fedlearn.reducers.exact import CHUNK, ExactSum
from fedlearn.reducers.fast import FastSum
from fedlearn.vectors import digest


class Pair(NamedTuple):
    """The model and the one before it."""

    x: Vec
    previous: Vec


@dataclass(frozen=True)
class Remembers(FedAvg):
    """Keeps the model before, in the very tensor that it was."""

    coordinatewise: ClassVar[bool] = True

    def server_init(self, x0: Vec) -> Pair:
        return Pair(x0, x0)

    def server_update(self, s: Pair, mean: Msg, info: RoundInfo) -> Pair:
        return Pair(s.x + mean["dx"] + 0.5 * (s.x - s.previous), s.x)


@dataclass(frozen=True)
class Normed(FedAvg):
    """Looks at the whole mean: it has not inherited the leave to be given pieces."""

    def server_update(self, s: Tree, mean: Msg, info: RoundInfo) -> ServerState:
        return ServerState(s.x + mean["dx"] / mean["dx"].norm())


class Normalise(Stage):
    """Changes the mean by something that depends on all of it."""

    def encode(self, msg: Msg, client: int, round: int) -> Msg:
        return msg

    def decode(self, mean: Msg) -> Msg:
        return {name: v / v.norm() for name, v in mean.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduce", ["exact", "fast"])
@pytest.mark.parametrize(("algorithm", "pipeline"), [
    (FedAvg(), {}), (FedAvg(), {"clip": Clip(0.1)}), (FedAvg(), {"normalise": Normalise()}), (FedAdam(), {}),
    (FedProx(), {}), (Scaffold(), {}), (Remembers(), {}), (Normed(), {})], ids=lambda x: str(x)[:24])
def test_pieces_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch, algorithm: Any, pipeline: dict, reduce: str,
                                    dtype: torch.dtype) -> None:
    choices: dict[str, Any] = {"rounds": 3, "cohort": 3, "pipeline": pipeline, "reduce": reduce}
    whole = play(experiment(algorithm, task=blobs(dtype=dtype), **choices))[1]
    monkeypatch.setattr(synchronous, "PIECE", 8)
    pieces = play(experiment(algorithm, task=blobs(dtype=dtype), **choices))[1]
    assert [report.digest for report in pieces] == [report.digest for report in whole]


def test_the_mean_is_asked_for_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, mean = [], ExactSum.mean_of_part
    monkeypatch.setattr(ExactSum, "mean_of_part", lambda total, by, part: asked.append(part) or mean(total, by, part))
    monkeypatch.setattr(synchronous, "PIECE", 20)
    task = blobs()
    play(experiment(FedAdam(), task=task, rounds=1))
    assert asked == [slice(a, a + 20) for a in range(0, task.initial(0).numel(), 20)]


def test_the_initial_model_of_a_task_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synchronous, "PIECE", 8)
    task = blobs()
    x0 = task.initial(0)
    before = digest(x0)
    monkeypatch.setattr(task, "initial", lambda seed: x0)
    play(experiment(FedAvg(), task=task, rounds=1))
    assert digest(x0) == before


@pytest.mark.parametrize("kind", [ExactSum, FastSum])
def test_a_part_of_a_mean_is_that_part_of_it(kind: type) -> None:
    g = torch.Generator().manual_seed(0)
    total, n = kind(), CHUNK + 100
    for m in range(3):
        msg = {"a": torch.randn(n, generator=g), "b": torch.randn(n, generator=g, dtype=torch.float64)}
        total.add(msg, {"a": 0.5, "b": 2.0}, m, 0)
    mean = total.mean({"a": 3.0, "b": 7.0})
    for part in (slice(0, 10), slice(CHUNK - 5, CHUNK + 5), slice(90, n + 50)):
        for name, v in total.mean_of_part({"a": 3.0, "b": 7.0}, part).items():
            assert torch.equal(v, mean[name][part]) and v.dtype == mean[name].dtype
