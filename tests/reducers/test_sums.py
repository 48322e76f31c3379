"""The exact sum has no order, loses nothing that it promises to keep, and refuses what it cannot hold."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import ClientError, NonFiniteUpdate, UpdateOverflow
from fedlearn.reducers.exact import CHUNK, SCALE, ExactSum
from fedlearn.reducers.fast import FastSum
from fedlearn.reducers.layout import Layout

SUMS = [ExactSum, FastSum]


def add_all(total, vectors, weights=None):
    for m, v in enumerate(vectors):
        total.add({"dx": v}, {"dx": 1.0 if weights is None else weights[m]}, m, 0)
    return total


def random_vectors(n, size, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=dtype) for _ in range(n)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_order_and_any_grouping_gives_the_same_bits(dtype):
    vectors = random_vectors(7, CHUNK + 5, dtype)
    weights = [0.1 * (m + 1) for m in range(7)]
    one = ExactSum()
    for m in range(7):
        one.add({"dx": vectors[m]}, {"dx": weights[m]}, m, 0)
    parts = []
    for group in ([6, 2], [0], [5, 1, 3, 4]):
        part = ExactSum()
        for m in group:
            part.add({"dx": vectors[m]}, {"dx": weights[m]}, m, 0)
        part.carry()
        parts.append(part)
    total = ExactSum()
    total.shape_as(one.layout)
    for part in parts:
        total.buffer += part.buffer
    one.carry()
    total.carry()
    assert torch.equal(one.buffer, total.buffer)
    assert torch.equal(one.mean({"dx": 2.8})["dx"], total.mean({"dx": 2.8})["dx"])


def test_float32_error_is_one_rounding_per_client():
    vectors = random_vectors(10, 1000, torch.float32)
    mean = add_all(ExactSum(), vectors).mean({"dx": 1})["dx"]
    true = torch.stack(vectors).double().sum(0)
    # 10 roundings to 2^-40, and the final one to float32.
    assert (mean.double() - true).abs().max() <= 10 * 2.0**-41 + true.abs().max() * 2.0**-24


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e5, 1e5).filter(lambda v: v == 0 or abs(v) > 2.0**-40), min_size=1, max_size=6))
def test_float64_sums_are_exact_to_the_last_bit(values):
    vectors = [torch.tensor([v], dtype=torch.float64) for v in values]
    got = add_all(ExactSum(), vectors).mean({"dx": 1})["dx"].item()
    true = float(sum((Fraction(v) for v in values), Fraction(0)))
    # Both limbs are exact; only bringing them together rounds, at most twice.
    assert abs(got - true) <= 2 * abs(true) * 2.0**-53 + 2.0**-90


def test_a_large_sum_and_a_small_rest_survive_together():
    vectors = [torch.tensor([2.0**20], dtype=torch.float64), torch.tensor([2.0**-60], dtype=torch.float64),
               torch.tensor([-(2.0**20)], dtype=torch.float64)]
    assert add_all(ExactSum(), vectors).mean({"dx": 1})["dx"].item() == 2.0**-60


@pytest.mark.parametrize("kind", SUMS)
def test_named_vectors_have_their_own_weights_and_denominators(kind):
    total = kind()
    for m, w in enumerate((0.5, 1.5)):
        total.add({"dx": torch.full((3,), m + 1.0), "n": torch.tensor([2.0 * m])}, {"dx": w, "n": 1.0}, m, 0)
    mean = total.mean({"dx": 2.0, "n": 2.0})
    assert mean["dx"].tolist() == [(0.5 * 1 + 1.5 * 2) / 2] * 3
    assert mean["n"].tolist() == [1.0]
    assert mean["dx"].dtype == torch.float32


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 0.3, 1.0], [0.7, 1.0, 2.0]])
def test_each_weighted_entry_is_rounded_to_the_nearest_unit(weights):
    vectors = random_vectors(3, CHUNK + 5, torch.float32)
    stacked, apart = ExactSum(), add_all(ExactSum(), vectors, weights)
    stacked.add_stack({"dx": torch.stack(vectors)}, {"dx": weights}, [0, 1, 2], 0)
    units = sum((v.double() * w * 2.0**SCALE).round().long() for v, w in zip(vectors, weights, strict=True))
    for total in (stacked, apart):
        total.carry()
        assert torch.equal(total.buffer, units)


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_entries_are_refused_before_they_touch_the_sum(kind, bad):
    total = add_all(kind(), [torch.ones(4)])
    before = total.buffer.clone()
    with pytest.raises(NonFiniteUpdate, match=r"client 7, round 3: 1 of 4 entries of upload 'dx' are NaN or infinite"):
        total.add({"dx": torch.tensor([1.0, bad, 1.0, 1.0])}, {"dx": 1.0}, 7, 3)
    assert torch.equal(total.buffer, before)


def test_a_sum_that_could_wrap_is_refused_with_the_client():
    limit = 2.0 ** (62 - SCALE)
    total = add_all(ExactSum(), [torch.tensor([limit * 0.6])])
    with pytest.raises(UpdateOverflow, match=r"client 9, round 2: .*reduce=fast"):
        total.add({"dx": torch.tensor([limit * 0.6])}, {"dx": 1.0}, 9, 2)
    assert add_all(FastSum(), [torch.tensor([limit * 9])]).mean({"dx": 1})["dx"].item() == limit * 9


@pytest.mark.parametrize("kind", SUMS)
def test_an_upload_of_another_layout_is_refused(kind):
    total = add_all(kind(), [torch.ones(4)])
    with pytest.raises(ClientError, match="client 1, round 0: upload .* differs from the others'"):
        total.add({"dx": torch.ones(5)}, {"dx": 1.0}, 1, 0)
    with pytest.raises(ClientError, match=r"client 2, round 0: upload 'dx' is int64"):
        total.add({"dx": torch.ones(4, dtype=torch.int64)}, {"dx": 1.0}, 2, 0)


def test_layout_survives_json():
    layout = Layout.of({"b": torch.ones(1, 2), "a": torch.ones(1, 3, dtype=torch.float64)}, 0, 0)
    assert Layout.from_json([list(part) for part in layout.parts]) == layout
    assert [name for name, _, _ in layout.parts] == ["a", "b"]


def test_thousands_of_float64_clients_are_summed_to_the_last_bit():
    # The second limb would wrap around after 2^11 of these.
    n, v = 5000, 0.1
    whole = add_all(ExactSum(), [torch.tensor([v], dtype=torch.float64)] * n)
    assert whole.mean({"dx": 1})["dx"].item() == float(n * Fraction(v))
    parts = [add_all(ExactSum(), [torch.tensor([v], dtype=torch.float64)] * k) for k in (700, 4000, 300)]
    for part in (whole, *parts):
        part.carry()
    total = ExactSum()
    total.shape_as(whole.layout)
    for part in parts:
        total.buffer += part.buffer
    total.carry()
    assert torch.equal(total.buffer, whole.buffer)
