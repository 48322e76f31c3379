"""What crosses between ranks in a round: small and large vectors, long answers, sums in bf16, a dedicated rank 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import begin, blobs, experiment, losses, play, setup_of

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.balance import balance
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.backends.torchrun.bundle import BLOCK, Altered, bundle, checksum, length, room_for, unbundle
from fedlearn.backends.torchrun.group import Group
from fedlearn.backends.torchrun.host import Host
from fedlearn.backends.torchrun.share import crossing
from fedlearn.errors import ConfigError
from fedlearn.reducers.fast import FastSum
from fedlearn.vectors import digest
from fedlearn.work import Work, cost
from fedlearn.worker.worker import Worker

pytestmark = [pytest.mark.torchrun, pytest.mark.usefixtures("tidy")]


def final(backend: Any = None, **choices: Any) -> str:
    choices = {"algorithm": Scaffold(), "cohort": 3, "rounds": 2, **choices}
    return digest(play(experiment(**choices, **({"backend": backend} if backend else {})))[0])


def test_bundles() -> None:
    v = torch.arange(5, dtype=torch.float64)
    said = bundle({"a": [1, float("inf")]}, [v, torch.zeros(0)])
    words, small = unbundle(torch.cat([said, torch.ones(9, dtype=torch.uint8)]))
    assert words == {"a": [1, float("inf")]} and torch.equal(small.clone().view(torch.float64), v)
    assert length(said[:24]) == said.numel() <= room_for(said.numel())


def test_no_bit_of_a_bundle_changes_unseen() -> None:
    said = bundle({"a": 1}, [torch.arange(5, dtype=torch.float64)])
    for byte in range(said.numel()):
        for bit in range(8):
            said[byte] ^= 1 << bit
            with pytest.raises(Altered):
                length(said)
                unbundle(said)
            said[byte] ^= 1 << bit
    assert unbundle(said)[0] == {"a": 1}


@pytest.mark.parametrize("v", [torch.arange(-9, 20), torch.randn(1001), torch.randn(17, dtype=torch.float64),
                               torch.arange(13, dtype=torch.uint8)[3:]])
def test_checksums_of_large_vectors(v: torch.Tensor) -> None:
    data = v.contiguous().numpy().tobytes()
    whole = len(data) // 8 * 8
    words = [int.from_bytes(data[i:i + 8], "little") for i in range(0, whole, 8)]
    assert checksum(v) == (sum(words) + sum(data[whole:])) % 2**64


def test_checksums_of_some_blocks_see_every_word_in_one_turn_of_so_many() -> None:
    v = torch.randint(-2**62, 2**62, (4 * 3 * BLOCK + 500,))
    before = [checksum(v, 4, turn) for turn in range(4)]
    assert len(set(before)) == 4
    for place in (0, BLOCK, 5 * BLOCK + 7, 12 * BLOCK - 1):
        v[place] ^= 1 << 40
        assert [checksum(v, 4, turn) != before[turn] for turn in range(4)].count(True) == 1
        assert checksum(v, 4, place // BLOCK) != before[place // BLOCK % 4]
        v[place] ^= 1 << 40
    v[-1] += 1
    assert all(checksum(v, 4, turn) == (before[turn] + 1) % 2**64 for turn in range(4))


def test_a_broadcast_that_is_altered_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, workers = begin(experiment(FedAvg(), task=blobs(features=20_000), rounds=3, backend=Torchrun(workers=2)))
    loop.round(0)
    fill, times = Host.fill, [1]

    def altered(host: Host, vectors: Any) -> None:
        some = [v.clone() for v in vectors]
        if times and some:
            times.pop()
            some[0] ^= 1
        fill(host, some)

    monkeypatch.setattr(Host, "fill", altered)
    for r in (1, 2):
        loop.round(r)
    workers.close()
    (event,) = losses(workers.events())
    assert event["who"].startswith("rank 1 (process ") and event["why"] == "the broadcast 'x' arrived altered at rank 1"
    assert digest(loop.model()) == final(algorithm=FedAvg(), task=blobs(features=20_000), rounds=3, cohort=None)


def test_a_sum_that_is_altered_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, workers = begin(experiment(FedAvg(), task=blobs(features=20_000), rounds=2, backend=Torchrun(workers=2)))
    reduce, times = Group.reduce, [1]

    def altered(group: Group, buffer: torch.Tensor, wire: str) -> torch.Tensor:
        total = reduce(group, buffer, wire)
        if times:
            times.pop()
            total += 1
        return total

    monkeypatch.setattr(Group, "reduce", altered)
    for r in range(2):
        loop.round(r)
    workers.close()
    (event,) = losses(workers.events())
    assert event["why"] == "the sum of the ranks' partial sums arrived altered" and event["ranks"] == 2
    assert digest(loop.model()) == final(algorithm=FedAvg(), task=blobs(features=20_000), rounds=2, cohort=None)


def test_the_checksum_of_a_sum_is_the_sum_of_the_checksums_also_where_it_wraps() -> None:
    parts = torch.randint(-2**62, 2**62, (3, 1000))
    assert checksum(parts.sum(0)) == sum(map(checksum, parts)) % 2**64


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
    waited, done = [], Group.done
    monkeypatch.setattr(Group, "done", lambda group, work: waited.append(work) or done(group, work))
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
    crossed, cross = [], Group.begin
    monkeypatch.setattr(Group, "begin", lambda group, t, *to: crossed.append(t) or cross(group, t, *to))
    task = blobs(features=features)
    e = experiment(FedAvg(), task=task, reduce="fast", stack=False)
    x0 = task.initial(0)
    work = Work(0, 0, {"x": x0}, list(range(6)), [1.0] * 6, e.local)
    one, parts = Worker(setup_of(e)), []
    for share in balance({m: cost(task.sizes, m, work.local) for m in work.clients}, [1, 1]):
        total = FastSum()
        one.reduce(work, share, total)
        parts.append(total.buffer)
    for wire in ("float32", "bf16"):
        workers = Torchrun(workers=2, wire=wire).open(setup_of(e))
        crossed.clear()
        reduced = workers.map_reduce(work)
        workers.close()
        expected = parts[0] + (parts[1].bfloat16().float() if wire == "bf16" else parts[1])
        assert torch.equal(reduced.sum.buffer, expected)
        error = (reduced.sum.buffer - (parts[0] + parts[1])).abs()
        assert bool((error <= 2.0**-8 * parts[1].abs() + 2.0**-23 * (parts[0].abs() + parts[1].abs())).all())
        assert bool(error.any()) == (wire == "bf16")
        by_themselves = sum(t.nbytes for t in crossed if t.dtype == torch.bfloat16)
        assert by_themselves == (2 * x0.numel() if wire == "bf16" and features > 6 else 0)
        assert crossing(parts[1], wire).nbytes == (2 if wire == "bf16" else 4) * x0.numel()
        assert reduced.records[0].bytes_up == 4 * x0.numel()  # the clients' payloads are what they were


def test_integers_do_not_cross_in_bf16() -> None:
    with pytest.raises(ConfigError, match="^backend.wire: found 'bf16'; allowed: float32 with reduce=exact"):
        begin(experiment(FedAvg(), backend=Torchrun(workers=2, wire="bf16")))
