"""The heterogeneity levels: what all of them keep, what each of them does, what they refuse."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedlearn.data.partitions import IID, Concept, Dirichlet, Feature, Natural, Quantity, Shards
from fedlearn.data.partitions.allot import apportion, keep_least
from fedlearn.data.partitions.dirichlet import draw_shares
from fedlearn.data.partitions.feature import rotate
from fedlearn.data.picture import counts
from fedlearn.data.raw import RawData
from fedlearn.data.store import ClientStore
from fedlearn.errors import ConfigError, DataError


def raw(labels: Any, classes: int, groups: Any = None) -> RawData:
    """Return data whose feature is the number of the sample."""
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    x = torch.arange(len(y), dtype=torch.float32).reshape(-1, 1)
    return RawData(x, y, x[:1], y[:1], classes, None if groups is None else np.asarray(groups))


def even(n: int = 600, classes: int = 10) -> RawData:
    return raw(np.arange(n) % classes, classes)


def images(n: int = 12, side: int = 4) -> RawData:
    x = torch.arange(n * side * side, dtype=torch.float32).reshape(n, 1, side, side)
    y = torch.arange(n) % 3
    return RawData(x, y, x[:1], y[:1], 3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(a: ClientStore, b: ClientStore) -> bool:
    return (torch.equal(a.features, b.features) and torch.equal(a.labels, b.labels)
            and np.array_equal(a.offsets, b.offsets))


LEVELS = st.one_of(
    st.just(IID()),
    st.floats(-6, 6).map(lambda e: Dirichlet(10.0**e)),
    st.integers(1, 6).map(Shards),
    st.floats(0, 10).map(Quantity),
    st.floats(0, 1).map(Concept),
    st.just(Natural()),
)


@settings(max_examples=200, deadline=None)
@given(level=LEVELS, labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), clients=st.integers(1, 20),
       least=st.integers(1, 6), seed=st.integers(0, 9))
def test_every_sample_once_the_minimum_kept_and_the_same_again(level, labels, clients, least, seed):
    assume(clients * least <= len(labels))
    groups = np.arange(len(labels)) % clients
    data = raw(labels, 6, groups)
    try:
        store = level.split(data, clients, rng(seed), least)
    except (ConfigError, DataError) as error:
        # What was asked for is possible for all levels but one, which needs samples of the right classes.
        assert isinstance(level, Shards), error
        assert re.search("heterogeneity.classes_per_client|no other client can spare one", str(error))
        return
    assert len(store) == clients
    assert store.sizes.min() >= least
    assert sorted(store.features[:, 0].tolist()) == list(range(len(labels)))
    if not isinstance(level, Concept):
        assert torch.equal(store.labels, data.train_y[store.features[:, 0].long()])
    if isinstance(level, Shards):
        assert ((counts(store, 6) > 0).sum(axis=1) == level.classes_per_client).all()
    assert same(store, level.split(data, clients, rng(seed), least))


@settings(max_examples=200, deadline=None)
@given(table=st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=1, max_size=12),
       least=st.integers(0, 12), own=st.booleans())
def test_keep_least_moves_samples_and_loses_none(table, least, own):
    before = np.array(table, dtype=np.int64)
    assume(before.sum() >= len(before) * least)
    try:
        after = keep_least(before, least, own_classes_only=own)
    except DataError:
        assert own
        return
    assert (after.sum(axis=0) == before.sum(axis=0)).all()
    assert after.sum(axis=1).min() >= least and after.min() >= 0
    if own:
        assert ((after > 0) == (before > 0)).all()


@settings(max_examples=200, deadline=None)
@given(shares=st.lists(st.floats(0, 1e9), min_size=1, max_size=30), total=st.integers(0, 10**6))
def test_apportion_sums_up_and_rounds_by_less_than_one(shares, total):
    weights = np.array(shares)
    assume(weights.sum() > 0)
    parts = apportion(weights, total)
    assert parts.sum() == total and parts.min() >= 0
    assert (np.abs(parts - weights / weights.sum() * total) <= 1 + 1e-6).all()


@pytest.mark.parametrize("level", [IID(), Dirichlet(0.3), Shards(2), Quantity(1.0), Concept(0.5)], ids=str)
def test_another_seed_gives_another_partition(level):
    assert not same(level.split(even(), 20, rng(0), 5), level.split(even(), 20, rng(1), 5))


@pytest.mark.parametrize("level", [IID(), Dirichlet(1e-3), Dirichlet(0.3), Shards(2), Quantity(2.0),
                                   Concept()], ids=str)
def test_sixty_thousand_samples_and_a_thousand_clients(level):
    store = level.split(even(60_000), 1000, rng(), 30)
    assert len(store) == 1000 and store.sizes.sum() == 60_000 and store.sizes.min() >= 30


def test_iid_sizes_differ_by_at_most_one_and_samples_are_mixed():
    store = IID().split(even(103), 10, rng(), 1)
    assert sorted(set(store.sizes.tolist())) == [10, 11]
    assert store.features[:, 0].tolist() != sorted(store.features[:, 0].tolist())


def test_dirichlet_goes_from_one_class_to_all():
    def main_share(alpha: float) -> float:
        table = counts(Dirichlet(alpha).split(even(6000), 10, rng(), 1), 10)
        return float((table.max(axis=1) / table.sum(axis=1)).mean())

    shares = [main_share(alpha) for alpha in (1e-3, 0.1, 1.0, 1e3)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.8 and shares[-1] < 0.15


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 0.5, 1e6])
def test_dirichlet_shares_are_never_nan(alpha):
    shares = draw_shares(rng(), alpha, 200, 50)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution():
    for alpha in (0.05, 2.0):
        shares = draw_shares(rng(), alpha, 40_000, 4)
        np.testing.assert_allclose(shares.mean(axis=0), 0.25, atol=0.01)
        np.testing.assert_allclose(shares.var(axis=0), 3 / 16 / (4 * alpha + 1), rtol=0.05)


def test_shards_gives_every_client_so_many_classes_of_about_equal_size():
    store = Shards(2).split(even(), 30, rng(), 1)
    table = counts(store, 10)
    assert ((table > 0).sum(axis=1) == 2).all()
    assert table[table > 0].tolist() == [10] * 60
    assert len({tuple(np.flatnonzero(row)) for row in table}) > 5  # pairs are drawn, not fixed


def test_shards_cuts_a_large_class_into_more_shards():
    store = Shards(1).split(raw([0] * 90 + [1] * 10, 2), 10, rng(), 10)
    assert counts(store, 2).tolist().count([10, 0]) == 9


def test_quantity_follows_the_power_law():
    sizes = np.sort(Quantity(1.0).split(even(), 4, rng(), 1).sizes)[::-1]
    np.testing.assert_allclose(sizes, 600 / (1 + 1 / 2 + 1 / 3 + 1 / 4) / np.arange(1, 5), atol=1)
    assert set(Quantity(0.0).split(even(), 4, rng(), 1).sizes.tolist()) == {150}


def test_natural_keeps_the_groups():
    data = raw([0, 1, 2, 3, 4], 5, groups=[2, 0, 1, 0, 2])
    for clients in (None, 3):
        store = Natural().split(data, clients, rng(), 1)
        assert [store.client(m)[1].tolist() for m in range(3)] == [[1, 3], [2], [0, 4]]


def test_concept_permutes_every_label_on_a_share_of_the_clients():
    data = even()
    store = Concept(0.3).split(data, 10, rng(), 1)
    moved = []
    for m in range(10):
        x, y = store.client(m)
        old = data.train_y[x[:, 0].long()]
        pairs = set(zip(old.tolist(), y.tolist(), strict=True))
        assert len(pairs) == 10 and len({b for _, b in pairs}) == 10  # one permutation for the whole client
        assert len({a == b for a, b in pairs}) == 1  # of all labels, or of none
        moved.append(not torch.equal(old, y))
    assert sum(moved) == 3
    assert torch.equal(data.train_y, even().train_y)  # the task's own labels are untouched


def test_concept_permutes_sequences_too():
    x = torch.arange(8).reshape(4, 2)
    store = Concept(1.0).split(RawData(x, x % 3, x[:0], x[:0], 3), 2, rng(), 1)
    assert store.labels.shape == (4, 2) and (store.labels != store.features % 3).all()


def test_quarter_turns_are_exact_and_the_same_for_a_whole_client():
    data = images()
    before = data.train_x.clone()
    store = Feature("rotation", quarter_turns=True).split(data, 6, rng(), 1)
    plain = IID().split(data, 6, rng(), 1)
    turns = []
    for m in range(6):
        x, original = store.client(m)[0], plain.client(m)[0]
        turns.append([torch.equal(x, torch.rot90(original, k, dims=(2, 3))) for k in range(4)].index(True))
    assert len(set(turns)) > 1
    assert torch.equal(data.train_x, before)


def test_rotation_agrees_with_exact_turns_and_keeps_the_background():
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    for k in range(-1, 3):
        torch.testing.assert_close(rotate(x, 90.0 * k), torch.rot90(x, k, dims=(2, 3)))
    torch.testing.assert_close(rotate(torch.full((1, 1, 6, 4), -0.8), 33.0), torch.full((1, 1, 6, 4), -0.8))


def test_rotation_has_the_given_strength():
    data = images()
    slight = Feature("rotation", 1e-6).split(data, 3, rng(), 1)
    torch.testing.assert_close(slight.features, IID().split(data, 3, rng(), 1).features, atol=1e-2, rtol=0)
    strong = Feature("rotation", 90.0).split(data, 3, rng(), 1)
    assert not torch.allclose(strong.features, slight.features, atol=1)


def test_noise_grows_from_client_to_client_to_the_given_variance():
    n = 4000
    x = torch.zeros(n, 10)
    data = RawData(x, torch.zeros(n).long(), x[:0], torch.zeros(0), 1)
    store = Feature("noise", 0.5).split(data, 4, rng(), 1)
    variances = [float(store.client(m)[0].var()) for m in range(4)]
    np.testing.assert_allclose(variances, [0.125, 0.25, 0.375, 0.5], rtol=0.1)
    assert not x.any()


SEQUENCES = RawData(torch.zeros(4, 2).long(), torch.zeros(4, 2).long(), torch.zeros(0), torch.zeros(0), 3)


@pytest.mark.parametrize(("level", "data", "clients", "least", "error", "message"), [
    (IID(), even(), 700, 1, ConfigError, "clients: found 700; allowed: 1 to 600. 700 clients x at least 1 "
     "sample(s) = 700; there are 600 training samples."),
    (Dirichlet(), even(), 61, 10, ConfigError, "clients: found 61; allowed: 1 to 60. 61 clients x at "
     "least 10"),
    (Quantity(), even(), 0, 1, ConfigError, "clients: found 0; allowed: 1 to 600"),
    (IID(), even(), None, 1, ConfigError, "Only heterogeneity=natural takes the number of clients"),
    (IID(), even(), 5, 0, ConfigError, "min_samples: found 0"),
    (Dirichlet(), SEQUENCES, 2, 1, DataError, "heterogeneity=dirichlet splits by class and needs one class "
     "per sample; found labels of shape [4, 2]"),
    (Shards(), raw([0, 7], 2), 1, 1, DataError, "labels: found 0 to 7; allowed: 0 to 1"),
    (Shards(11), even(), 5, 1, ConfigError, "heterogeneity.classes_per_client: found 11; allowed: 1 to 10"),
    (Shards(2), even(), 4, 1, ConfigError,
     "allowed: at least 3. 4 clients x 2 = 8 shards cannot hold 10 classes"),
    (Shards(2), raw([0] * 9 + [1], 2), 5, 1, ConfigError, "allowed: at most 1. 5 clients x 2 = 10 shards; "
     "the classes have samples for 6"),
    (Shards(1), raw([0] * 95 + [1] * 5, 2), 10, 10, DataError, "gets 5 samples of its classes [1], and no "
     "other client can spare one; at least 10 asked"),
    (Concept(), raw([0, 0], 1), 1, 1, DataError, "permutes at least 2 classes; found 1 class(es)"),
    (Feature("rotation"), even(), 2, 1, DataError, "rotates images [channels, height, width]; found features "
     "of shape [1]"),
    (Feature("noise"), SEQUENCES, 2, 1, DataError, "changes real-valued features; found torch.int64"),
    (Natural(), even(), None, 1, DataError, "needs a data set with natural clients"),
    (Natural(), raw([0, 1, 2], 3, [0, 1, 1]), 5, 1, ConfigError, "clients: found 5; allowed: 2, or null for "
     "all groups. The data set has 2 natural clients, and 5 is 3 more."),
    (Natural(), raw([0, 1, 2], 3, [0, 1, 1]), 1, 1, ConfigError, "and 1 is 1 fewer."),
    (Natural(), raw([0, 1, 2], 3, [0, 1, 1]), None, 2, DataError,
     "client 0 has 1 samples; at least 2 asked (1 of 2"),
], ids=lambda v: v if isinstance(v, str) else None)
def test_impossible_requests_are_refused_with_the_arithmetic(level, data, clients, least, error, message):
    with pytest.raises(error, match=re.escape(message)):
        level.split(data, clients, rng(), least)


def test_a_quarter_turn_needs_square_images():
    x = torch.zeros(4, 1, 2, 3)
    with pytest.raises(DataError, match="needs square images"):
        data = RawData(x, torch.zeros(4).long(), x, torch.zeros(4), 1)
        Feature(quarter_turns=True).split(data, 2, rng(), 1)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Dirichlet(0.0), "heterogeneity.alpha: found 0.0"),
    (lambda: Dirichlet(float("nan")), "heterogeneity.alpha: found nan"),
    (lambda: Shards(0), "heterogeneity.classes_per_client: found 0"),
    (lambda: Quantity(-1.0), "heterogeneity.exponent: found -1.0"),
    (lambda: Concept(1.5), "heterogeneity.share: found 1.5"),
    (lambda: Feature("rotations"), "did you mean rotation?"),
    (lambda: Feature("rotation", 181.0), "heterogeneity.strength: found 181.0"),
    (lambda: Feature("noise", 0.0), "heterogeneity.strength: found 0.0"),
    (lambda: Feature("noise", quarter_turns=True), "heterogeneity.quarter_turns: found True"),
    (lambda: Feature("rotation", 45.0, quarter_turns=True), "null with quarter_turns=true"),
])
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()
