"""Weights: exact figures of a small cohort, and bias and variance over many rounds."""

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
from fedlearn.policies.weighting import RatioWeighting, SchemeOne, SchemeTwo, UniformWeighting, Weighting

SAMPLINGS: list[Sampling] = [UniformSampling(), FullParticipation(), ProportionalSampling(), CyclicSampling(),
                             OneMachine()]


def weigh(weighting: Weighting, counts: tuple[int, int] = (1, 1)) -> tuple[list[float], float | None]:
    """Weigh clients 1 and 4, with 10 and 30 of all 200 samples, of 5 clients."""
    w, denominator = weighting.weights(np.array([1, 4]), np.array(counts), np.array([10, 30]), 200, 5)
    assert w.dtype == np.float64
    return w.tolist(), denominator


def test_weights_of_a_small_cohort() -> None:
    assert weigh(RatioWeighting()) == ([0.5, 1.5], None)
    assert weigh(UniformWeighting()) == ([1, 1], None)
    assert weigh(SchemeOne(), (3, 1)) == ([1.5, 0.5], None)
    assert weigh(SchemeTwo()) == ([0.25, 0.75], 2)  # p_m N = 0.05 * 5 and 0.15 * 5


@pytest.mark.parametrize(("weighting", "good"), [
    (RatioWeighting(), {"uniform", "full", "cyclic", "one"}),
    (UniformWeighting(), {"uniform", "full", "cyclic", "one"}),
    (SchemeOne(), {"proportional"}), (SchemeTwo(), {"uniform", "full"}),
])
def test_a_sampling_that_does_not_fit_is_refused(weighting: Weighting, good: set[str]) -> None:
    for sampling in SAMPLINGS:
        if sampling.name in good:
            weighting.check(sampling)
        else:
            with pytest.raises(ConfigError) as e:
                weighting.check(sampling)
            assert e.value.key == "weighting" and f"sampling={sampling.name}" in str(e.value)


def test_bias_and_variance() -> None:
    """100 clients with log-normal sizes, 10 a round; clients with more data send larger updates."""
    rng = np.random.default_rng(14)
    sizes = np.ceil(50 * rng.lognormal(0, 1, 100)).astype(np.int64)
    updates = 2 + sizes / 100 + 0.3 * rng.standard_normal(100)
    total, rounds = int(sizes.sum()), 4000
    target = float(sizes @ updates / total)

    def estimates(weighting: Weighting, sampling: Sampling, size: int | None = 10) -> np.ndarray:
        weighting.check(sampling)
        found = []
        for r in range(rounds if size else 1):
            ids, counts = sampling.cohort(sizes, size, rng, r)
            w, denominator = weighting.weights(ids, counts, sizes[ids], total, 100)
            found.append(w @ updates[ids] / (w.sum() if denominator is None else denominator))
        return np.array(found)

    ratio, plain = (estimates(w, UniformSampling()) for w in (RatioWeighting(), UniformWeighting()))
    one, two = estimates(SchemeOne(), ProportionalSampling()), estimates(SchemeTwo(), UniformSampling())

    def sigmas(found: np.ndarray) -> float:
        return float((found.mean() - target) / (found.std() / rounds**0.5))

    assert sigmas(ratio) < -8 and plain.mean() < ratio.mean()
    assert abs(sigmas(one)) < 4 and abs(sigmas(two)) < 4
    assert one.std() < ratio.std() < two.std()
    assert plain.mean() == pytest.approx(updates.mean(), rel=0.01)
    for exact in (RatioWeighting(), SchemeTwo()):
        assert estimates(exact, FullParticipation(), None)[0] == pytest.approx(target, rel=1e-13)
