"""What crosses between ranks in a round: small and large vectors, long answers, sums in bf16, a dedicated rank 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import begin, blobs, experiment, play, setup_of

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.balance import balance
from fedlearn.backends.torchrun import Torchrun
from fedlearn.backends.torchrun_bundle import bundle, length, room_for, unbundle
from fedlearn.backends.torchrun_group import Group
from fedlearn.backends.torchrun_rank import crossing
from fedlearn.errors import ConfigError
from fedlearn.reducers.fast import FastSum
from fedlearn.vectors import digest
from fedlearn.work import Work, cost
from fedlearn.worker import Worker

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]


def final(backend: Any = None, **choices: Any) -> str:
    choices = {"algorithm": Scaffold(), "cohort": 3, "rounds": 2, **choices}
    return digest(play(experiment(**choices, **({"backend": backend} if backend else {})))[0])


def test_bundles() -> None:
    v = torch.arange(5, dtype=torch.float64)
    said = bundle({"a": [1, float("inf")]}, [v, torch.zeros(0)])
    words, small = unbundle(torch.cat([said, torch.ones(9, dtype=torch.uint8)]))
    assert words == {"a": [1, float("inf")]} and torch.equal(small.clone().view(torch.float64), v)
    assert length(said[:20]) == said.numel() <= room_for(said.numel())


@pytest.mark.parametrize("cohort", [3, 1])  # of two ranks one is idle
def test_large_vectors_travel_by_themselves(cohort: int) -> None:
    choices: dict[str, Any] = {"task": blobs(features=20_000), "cohort": cohort}
    assert final(Torchrun(workers=2), **choices) == final(**choices)


def test_commands_and_answers_outgrow_their_room() -> None:
    choices: dict[str, Any] = {"task": blobs(tuple(range(5, 405))), "cohort": 300, "algorithm": FedAvg()}
    loop, workers = begin(experiment(**choices, rounds=2, backend=Torchrun(workers=2)))
    before = workers.group.room, workers.room
    for r in range(2):
        loop.round(r)
    assert workers.group.room > before[0] and workers.room > before[1]
    workers.close()
    assert digest(loop.model()) == final(**choices)


def test_a_round_of_a_small_model_is_two_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, workers = begin(experiment(FedAvg(), backend=Torchrun(workers=2)))
    loop.round(0)
    waited, done = [], Group._done
    monkeypatch.setattr(Group, "_done", lambda group, work: waited.append(work) or done(group, work))
    loop.round(1)
    assert len(waited) == 2
    workers.close()


def test_a_dedicated_coordinator_works_on_no_client() -> None:
    loop, workers = begin(experiment(Scaffold(), cohort=3, rounds=2, backend=Torchrun(workers=3, dedicated=True)))
    workers.worker.oracle = None
    for r in range(2):
        loop.round(r)
    workers.close()
    assert digest(loop.model()) == final()
    with pytest.raises(ConfigError, match="^backend.dedicated: found True; allowed: false with one rank"):
        Torchrun(workers=1, dedicated=True)


@pytest.mark.parametrize("features", [6, 40_000])
def test_partial_sums_in_bf16_are_rounded_once_and_take_half_the_bytes(
        features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, gather = [], Group._gather
    monkeypatch.setattr(Group, "_gather", lambda group, t: gathered.append(t) or gather(group, t))
    task = blobs(features=features)
    e = experiment(FedAvg(), task=task, reduce="fast", stack=False)
    x0 = task.initial(0)
    work = Work(0, 0, {"x": x0}, list(range(6)), [1.0] * 6, e.local)
    one, parts = Worker(setup_of(e)), []
    for share in balance({m: cost(task.sizes, m, work.local) for m in work.clients}, 2):
        total = FastSum()
        one.reduce(work, share, total)
        parts.append(total.buffer)
    for wire in ("float32", "bf16"):
        workers = Torchrun(workers=2, wire=wire).open(setup_of(e))
        gathered.clear()
        reduced = workers.map_reduce(work)
        workers.close()
        expected = parts[0] + (parts[1].bfloat16().float() if wire == "bf16" else parts[1])
        assert torch.equal(reduced.sum.buffer, expected)
        error = (reduced.sum.buffer - (parts[0] + parts[1])).abs()
        assert bool((error <= 2.0**-8 * parts[1].abs() + 2.0**-23 * (parts[0].abs() + parts[1].abs())).all())
        assert bool(error.any()) == (wire == "bf16")
        by_themselves = sum(t.nbytes for t in gathered if t.dtype == torch.bfloat16)
        assert by_themselves == (2 * x0.numel() if wire == "bf16" and features > 6 else 0)
        assert crossing(parts[1], wire).nbytes == (2 if wire == "bf16" else 4) * x0.numel()
        assert reduced.records[0].bytes_up == 4 * x0.numel()  # the clients' payloads are what they were


def test_integers_do_not_cross_in_bf16() -> None:
    with pytest.raises(ConfigError, match="^backend.wire: found 'bf16'; allowed: float32 with reduce=exact"):
        begin(experiment(FedAvg(), backend=Torchrun(workers=2, wire="bf16")))
