"""How many local steps, and which mini-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlearn.errors import ConfigError, DataError
from fedlearn.policies.local_work import LocalWork, batches


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("plan", "samples", "steps", "size"), [
    (LocalWork(), 45, 3, 20), (LocalWork(epochs=2), 40, 4, 20), (LocalWork(epochs=2), 41, 6, 20),
    (LocalWork(epochs=3, batch_size=None), 41, 3, 41), (LocalWork(epochs=3, batch_size=0), 41, 3, 41),
    (LocalWork(steps=7), 41, 7, 20), (LocalWork(steps=7), 5, 7, 5), (LocalWork(), 5, 1, 5),
    (LocalWork(), 0, 0, 0),
])
def test_steps_and_batch_sizes(plan: LocalWork, samples: int, steps: int, size: int) -> None:
    assert (plan.steps_for(samples), plan.batch_for(samples)) == (steps, size)


@pytest.mark.parametrize(("wrong", "key"), [
    ({"steps": 2, "epochs": 1}, "local.steps"), ({"steps": 0}, "local.steps"),
    ({"epochs": 0}, "local.epochs"), ({"batch_size": -1}, "local.batch_size"),
])
def test_wrong_plans_name_their_key(wrong: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError) as e:
        LocalWork(**wrong)
    assert e.value.key == key
    if len(wrong) == 2:
        assert "local.epochs=1" in str(e.value)


def test_an_epoch_is_one_shuffled_pass_and_each_pass_another() -> None:
    drawn = batches(rng(), 45, LocalWork(epochs=2))
    assert [len(b) for b in drawn] == [20, 20, 5, 20, 20, 5]
    first, second = torch.cat(drawn[:3]), torch.cat(drawn[3:])
    assert first.dtype == torch.int64
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(45))
    assert first.tolist() != second.tolist() and first.tolist() != list(range(45))


def test_steps_go_on_through_further_passes() -> None:
    drawn = batches(rng(), 45, LocalWork(steps=5))
    assert [len(b) for b in drawn] == [20, 20, 5, 20, 20]
    assert sorted(torch.cat(drawn[:3]).tolist()) == list(range(45))
    assert len(set(torch.cat(drawn[3:]).tolist())) == 40


def test_few_steps_of_a_large_client_draw_uniformly_without_repeats() -> None:
    count = np.zeros(10)
    for seed in range(2000):
        (drawn,) = batches(rng(seed), 10, LocalWork(steps=1, batch_size=3))
        assert len(set(drawn.tolist())) == 3
        count[drawn.numpy()] += 1
    # 600 expected of each, standard deviation sqrt(2000 * 0.3 * 0.7) = 20.5; five of them.
    assert np.abs(count - 600).max() < 103


def test_full_batch_is_everything_in_order_and_draws_nothing() -> None:
    stream = rng()
    for plan in (LocalWork(epochs=2, batch_size=None), LocalWork(steps=2, batch_size=7)):
        assert [b.tolist() for b in batches(stream, 7, plan)] == [list(range(7))] * 2
    assert stream.random() == rng().random()


def test_same_stream_same_batches() -> None:
    one, two, other = (torch.cat(list(batches(rng(s), 45, LocalWork()))).tolist() for s in (1, 1, 2))
    assert one == two != other


def test_a_client_without_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="0 samples"):
        batches(rng(), 0, LocalWork(steps=3))
