"""Client curricula: the pool by losses, and the losses that the run knows, also after it was resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import begin, blobs, experiment

import fedlearn
from fedlearn.errors import ConfigError
from fedlearn.policies.client_curriculum import ClientCurriculum
from fedlearn.policies.weighting import SchemeOne, SchemeTwo

SIZES = np.full(10, 5, dtype=np.int64)
LOSSES = {m: float(10 - m) for m in range(10)}      # client 9 has the smallest


def pool(rule: ClientCurriculum, round: int, rounds: int = 10, losses: dict[int, float] = LOSSES, size: int = 2
         ) -> set[int]:
    """Return every client that is ever drawn in a round."""
    drawn: set[int] = set()
    for seed in range(80):
        ids, counts = rule.knowing(losses, rounds).cohort(SIZES, size, np.random.default_rng(seed), round)
        assert len(set(ids.tolist())) == size and (np.diff(ids) > 0).all() and counts.tolist() == [1] * size
        drawn |= set(ids.tolist())
    return drawn


def test_pool_grows_from_small_losses_or_from_large_ones() -> None:
    assert [pool(ClientCurriculum(), r) for r in (0, 4, 8, 9)] == [
        {8, 9}, set(range(4, 10)), set(range(10)), set(range(10))]
    assert [pool(ClientCurriculum("anti"), r) for r in (0, 4)] == [{0, 1}, set(range(6))]
    assert pool(ClientCurriculum(full=0.2, start=0.5), 1) == set(range(3, 10))     # 5 + 5 / 2 = 7 of them
    assert pool(ClientCurriculum(), 0, size=4) == {6, 7, 8, 9}    # never fewer than the cohort


def test_who_never_took_part_comes_first() -> None:
    known = {m: LOSSES[m] for m in (0, 1, 2, 7, 8, 9)}
    for order in ("curr", "anti"):
        assert pool(ClientCurriculum(order), 2, losses=known) == {3, 4, 5, 6}   # any 4 of these; nobody known
    assert pool(ClientCurriculum(), 4, losses=known) == {3, 4, 5, 6, 8, 9}      # 6 of 10
    assert pool(ClientCurriculum(), 0, losses={}) == set(range(10))


def test_equal_losses_to_six_digits_leave_it_to_chance() -> None:
    assert pool(ClientCurriculum(), 0, losses={m: 1 + m * 1e-9 for m in range(10)}) == set(range(10))


def train(order: str = "curr", rounds: int = 8, **more: Any) -> Any:
    return fedlearn.run(algorithm=fedlearn.FedAvg(lr=0.1), task=blobs(), rounds=rounds, cohort=2, progress="none",
                        sampling=ClientCurriculum(order), **more)


def test_the_run_knows_the_losses_of_last_rounds() -> None:
    e = experiment(fedlearn.FedAvg(lr=0.1), 6, cohort=2, sampling=ClientCurriculum())
    loop, workers = begin(e)
    known: dict[int, float] = {}
    for r in range(6):
        rule = e.sampling.knowing(known, 6)
        from fedlearn.seeds import generator
        expected, _ = rule.cohort(loop.sizes, 2, generator(0, "sampling", r), r)    # type: ignore[attr-defined]
        report = loop.round(r)
        assert list(report.cohort) == expected.tolist()
        known |= {record.client: record.loss for record in report.records}
    assert loop.losses == known and len(known) == 6     # type: ignore[attr-defined]
    workers.close()


def test_a_resumed_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    whole = train()
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match="rounds: found '8'; allowed: 5"):
        train(rounds=5, folder=folder, checkpoint_every=1)
        train(folder=folder, resume=True)
    import shutil
    again = tmp_path / "again"
    train(folder=again, checkpoint_every=3, checkpoint_keep=9)
    for path in again.glob("checkpoints/round-*8"):
        shutil.rmtree(path)
    assert train(folder=again, resume=True).sha256 == whole.sha256 != train("anti").sha256


def test_weights_that_go_with_it() -> None:
    for weighting in (SchemeOne(), SchemeTwo()):
        with pytest.raises(ConfigError, match="choose weighting=ratio"):
            train(weighting=weighting)


@pytest.mark.parametrize(("field", "value"), [("order", "rand"), ("pacing", "fast"), ("full", 0), ("start", 0)])
def test_what_is_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as e:
        ClientCurriculum(**{field: value})
    assert e.value.key == f"sampling.{field}"
    assert field != "order" or "sampling=uniform" in str(e.value)
