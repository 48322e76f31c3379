"""Which clients work in a round."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.errors import ConfigError
from fedlearn.policies.sampling import (
    CyclicSampling,
    FullParticipation,
    OneMachine,
    ProportionalSampling,
    Sampling,
    UniformSampling,
)

SIZES = np.array([1, 9, 2, 5, 3], dtype=np.int64)
ALL: list[Sampling] = [UniformSampling(), FullParticipation(), ProportionalSampling(), CyclicSampling()]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("sampling", ALL, ids=lambda s: s.name)
def test_ids_are_sorted_and_counts_add_up(sampling: Sampling) -> None:
    size = None if sampling.name == "full" else 3
    for r in range(20):
        ids, counts = sampling.cohort(SIZES, size, rng(r), r)
        assert ids.dtype == counts.dtype == np.int64 and len(ids) == len(counts)
        assert (np.diff(ids) > 0).all() and ids.min() >= 0 and ids.max() < 5
        assert counts.sum() == (size or 5) and (sampling.name == "proportional" or (counts == 1).all())
        again, _ = sampling.cohort(SIZES, size, rng(r), r)
        assert ids.tolist() == again.tolist()


@pytest.mark.parametrize("sampling", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("size", [6, 0, -1])
def test_a_cohort_that_cannot_be_is_refused(sampling: Sampling, size: int) -> None:
    with pytest.raises(ConfigError) as e:
        sampling.cohort(SIZES, size, rng(), 0)
    assert e.value.key == "cohort" and e.value.found == size and "1 to 5" in e.value.allowed


def test_full_participation_refuses_a_smaller_cohort() -> None:
    assert FullParticipation().cohort(SIZES, 5, rng(), 0)[0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="cohort: found 3; .*sampling=uniform"):
        FullParticipation().cohort(SIZES, 3, rng(), 0)


def test_one_machine_is_always_the_same() -> None:
    for size in (1, None):
        drawn = [OneMachine(3).cohort(SIZES, size, rng(r), r) for r in range(3)]
        assert [(ids.tolist(), counts.tolist()) for ids, counts in drawn] == [([3], [1])] * 3
    with pytest.raises(ConfigError, match="cohort: found 2; allowed: 1 or null with sampling=one"):
        OneMachine().cohort(SIZES, 2, rng(), 0)
    with pytest.raises(ConfigError, match="sampling.client: found 5; allowed: 0 to 4"):
        OneMachine(5).cohort(SIZES, 1, rng(), 0)
    with pytest.raises(ConfigError, match="sampling.client: found -1"):
        OneMachine(-1)


def test_uniform_draws_everybody_alike() -> None:
    count = np.zeros(5)
    for seed in range(2000):
        count[UniformSampling().cohort(SIZES, 2, rng(seed), 0)[0]] += 1
    # 800 expected, standard deviation sqrt(2000 * 0.4 * 0.6) = 22; five of them.
    assert np.abs(count - 800).max() < 110


def test_proportional_draws_by_size_with_replacement() -> None:
    count, twice, sampling = np.zeros(5), 0, ProportionalSampling()
    for seed in range(2000):
        ids, counts = sampling.cohort(SIZES, 4, rng(seed), 0)
        count[ids] += counts
        twice += int(counts.max() > 1)
    # 8000 draws; standard deviation at most sqrt(8000 * 0.45 * 0.55) = 44.5; five of them.
    assert np.abs(count - 8000 * SIZES / 20).max() < 223 and twice > 1000


def test_proportional_follows_another_array_of_sizes() -> None:
    sampling = ProportionalSampling()
    sampling.cohort(SIZES, 2, rng(), 0)
    only_last = np.array([0, 0, 0, 0, 7], dtype=np.int64)
    assert sampling.cohort(only_last, 5, rng(), 0)[0].tolist() == [4]


def test_cyclic_takes_blocks_in_order_and_starts_again() -> None:
    cohorts = [CyclicSampling().cohort(SIZES, 2, rng(), r)[0].tolist() for r in range(4)]
    assert cohorts == [[0, 1], [2, 3], [0, 4], [1, 2]]


@pytest.mark.parametrize("sampling", [UniformSampling(), ProportionalSampling(), CyclicSampling()])
def test_a_draw_allocates_for_the_cohort_only(sampling: Sampling) -> None:
    import tracemalloc

    sizes = np.ones(1_000_000, dtype=np.int64)
    sampling.cohort(sizes, 50, rng(), 0)
    tracemalloc.start()
    sampling.cohort(sizes, 50, rng(1), 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
