"""Temperature sampling: its probabilities, its cooldown, and the variance that it saves."""

from __future__ import annotations

import numpy as np
import pytest

import fedlearn
from fedlearn.errors import ConfigError
from fedlearn.policies.sampling import ProportionalSampling, Sampling
from fedlearn.policies.temperature import TemperatureSampling
from fedlearn.policies.weighting import RatioWeighting, SchemeOne, SchemeTwo, UniformWeighting
from fedlearn.tasks.quadratic import Quadratic

SIZES = np.array([1, 9, 2, 5, 3], dtype=np.int64)
INF = float("inf")


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_probabilities_go_from_proportional_to_uniform() -> None:
    def of(tau: float) -> list[float]:
        return TemperatureSampling(tau).probabilities(SIZES, 0).tolist()

    assert of(1) == pytest.approx(SIZES / 20, rel=1e-15)
    assert of(INF) == pytest.approx([0.2] * 5, rel=1e-15)
    root = np.sqrt(SIZES)
    assert of(2) == pytest.approx(root / root.sum(), rel=1e-15)


@pytest.mark.parametrize("tau", [1, 2, 5, INF])
def test_clients_are_drawn_with_their_probabilities(tau: float) -> None:
    sampling, count = TemperatureSampling(tau), np.zeros(5)
    for seed in range(2000):
        ids, counts = sampling.cohort(SIZES, 4, rng(seed), 0)
        assert counts.sum() == 4 and (np.diff(ids) > 0).all() and ids.dtype == counts.dtype == np.int64
        count[ids] += counts
    p = sampling.probabilities(SIZES, 0)
    assert (np.abs(count - 8000 * p) < 5 * np.sqrt(8000 * p * (1 - p))).all()


def test_at_one_the_draws_are_those_of_proportional_sampling() -> None:
    cooled = TemperatureSampling(7, "step", at=3)
    for r in range(3, 20):
        for mine, other in zip(cooled.cohort(SIZES, 4, rng(r), r), ProportionalSampling().cohort(SIZES, 4, rng(r), r),
                               strict=True):
            assert mine.tolist() == other.tolist()


def test_cooldown() -> None:
    def temperatures(cooldown: str) -> list[float]:
        return [TemperatureSampling(5, cooldown, at=4).temperature(r) for r in range(7)]

    assert temperatures("none") == [5] * 7
    assert temperatures("step") == [5] * 4 + [1] * 3
    assert [1 / t for t in temperatures("linear")] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert [1 / TemperatureSampling(INF, "linear", 4).temperature(r) for r in (0, 1, 2, 4)] == [0, 0.25, 0.5, 1]


def test_a_draw_follows_the_temperature_and_the_array_of_sizes() -> None:
    sampling = TemperatureSampling(INF, "step", at=1)
    sizes = np.array([1, 10**12], dtype=np.int64)
    assert sampling.cohort(np.ones(2, dtype=np.int64), 1, rng(0), 0)[0].tolist() in ([0], [1])
    cooling = TemperatureSampling(INF, "linear", at=10)     # at round 9 almost proportional
    far = [np.mean([cooling.cohort(sizes, 1, rng(seed), r)[0][0] for seed in range(40)]) for r in (0, 9)]
    assert far[0] < 0.9 and far[1] == 1
    seen = [{int(sampling.cohort(sizes, 1, rng(seed), r)[0][0]) for seed in range(40)} for r in (0, 1)]
    assert seen == [{0, 1}, {1}]


def test_equal_means_and_less_variance_than_weights() -> None:
    """Two domains, 99 : 1, as if they were equally large: gradients of norm 1 along two axes."""
    sizes, gradients = np.array([99, 1], dtype=np.int64), np.eye(2)
    draws, stream = 8_000, rng(3)

    def estimates(sampling: Sampling, upweight: np.ndarray) -> np.ndarray:
        ids = np.concatenate([sampling.cohort(sizes, 1, stream, 0)[0] for _ in range(draws)])
        return gradients[ids] * upweight[ids, None]

    p = TemperatureSampling(1).probabilities(sizes, 0)
    weighted = estimates(ProportionalSampling(), 0.5 / p)
    upsampled = estimates(TemperatureSampling(INF), np.ones(2))
    for found in (weighted, upsampled):
        assert np.abs(found.mean(0) - 0.5).max() < 5 * found.std(0).max() / len(found) ** 0.5
    exact = [float(probability @ weight**2) for probability, weight in ((p, 0.5 / p), ([0.5, 0.5], np.ones(2)))]
    assert exact[0] / exact[1] == pytest.approx(0.25 / 0.99 + 0.25 / 0.01) == pytest.approx(25.25, abs=0.01)
    measured = [np.square(found).sum(1).mean() for found in (weighted, upsampled)]
    assert measured[1] == 1 and measured[0] == pytest.approx(exact[0], rel=0.35)


def test_every_draw_counts_alike_and_other_weights_are_refused() -> None:
    sampling, one = TemperatureSampling(3), SchemeOne()
    one.check(sampling)
    updates, p = np.array([1.0, -2, 0.5, 7, 3]), sampling.probabilities(SIZES, 0)
    found = []
    for seed in range(4000):
        ids, counts = sampling.cohort(SIZES, 3, rng(seed), 0)
        w, denominator = one.weights(ids, counts, SIZES[ids], 20, 5)
        assert denominator is None
        found.append(w @ updates[ids] / w.sum())
    assert abs(np.mean(found) - p @ updates) < 4 * np.std(found) / 4000**0.5
    for other in (RatioWeighting(), UniformWeighting(), SchemeTwo()):
        with pytest.raises(ConfigError, match="sampling=temperature; choose weighting=scheme1"):
            other.check(sampling)


@pytest.mark.parametrize(("field", "value"), [("tau", 0.5), ("tau", float("nan")), ("cooldown", "slow"), ("at", 0)])
def test_what_is_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as e:
        TemperatureSampling(**{field: value})     # type: ignore[arg-type]
    assert e.value.key == f"sampling.{field}"


def test_an_algorithm_of_everybody_refuses_a_part_and_draws_with_replacement() -> None:
    import torch

    class Everybody(fedlearn.FedAvg):
        everybody = True

    task = Quadratic().build(4, 0, torch.float64)
    with pytest.raises(ConfigError, match="cohort: found 2; allowed: null .all 4 clients. with algorithm Everybody"):
        fedlearn.run(algorithm=Everybody(), task=task, rounds=1, cohort=2, progress="none")
    with pytest.raises(ConfigError, match="cohort: .*full participation"):
        fedlearn.run(algorithm=Everybody(), task=task, rounds=1, sampling=TemperatureSampling(), weighting=SchemeOne(),
                     progress="none")
    history = fedlearn.run(algorithm=fedlearn.FedAvg(lr=0.01), task=task, rounds=2, cohort=2, weighting=SchemeOne(),
                           sampling=TemperatureSampling(cooldown="linear", at=1), progress="none")
    assert len(history.metrics) == 3
