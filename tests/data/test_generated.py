"""The store whose clients are made when asked for: the same samples always, and only those that are asked for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.api import run
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.data.generated import GeneratedStore
from fedlearn.data.store import ClientStore
from fedlearn.errors import ConfigError, DataError
from fedlearn.policies.local_work import LocalWork

SIZES = np.array([3, 1, 4, 2])


def points(client: int, rng: np.random.Generator):
    """Two classes of points around a centre of the client's own."""
    n = int(SIZES[client % 4])
    y = rng.integers(2, size=n, dtype=np.int32)
    return rng.standard_normal((n, 5), dtype=np.float32) + client % 7 + y[:, None], y


def test_samples_do_not_depend_on_order_copy_or_what_is_kept():
    store = GeneratedStore(SIZES, points, seed=1)
    first = {m: store.client(m) for m in range(4)}
    assert [len(x) for x, _ in first.values()] == SIZES.tolist()
    assert all(y.dtype == torch.int64 for _, y in first.values())
    again = pickle.loads(pickle.dumps(GeneratedStore(SIZES, points, seed=1, held=1)))    # a client at a time
    for m in (3, 0, 2, 0, 1):
        assert all(torch.equal(a, b) for a, b in zip(again.client(m), first[m], strict=True))
        assert list(again.__dict__["_kept"]) == [m]
    x, y = again.batch(2, [3, 0])
    assert torch.equal(x, first[2][0][[3, 0]]) and torch.equal(y, first[2][1][[3, 0]])
    assert not torch.equal(GeneratedStore(SIZES, points, seed=2).client(0)[0], first[0][0])
    assert not torch.equal(first[0][0][0], first[1][0][0])


def test_wrong_clients_are_named():
    with pytest.raises(DataError, match="client 1 has no data"):
        GeneratedStore(np.array([1, 0]), points)
    with pytest.raises(ConfigError, match="held: found -1"):
        GeneratedStore(SIZES, points, held=-1)
    with pytest.raises(DataError, match="client 1: found 1 features and 1 labels made; allowed: 2 of each"):
        GeneratedStore(np.array([3, 2]), points).client(1)


@pytest.mark.parametrize("choices", [{}, {"oracle": "autograd"}, {"stack": True}], ids=str)
def test_a_run_ends_where_it_does_with_the_same_samples_in_memory(choices):
    lazy = GeneratedStore(SIZES, points)
    kept = ClientStore.from_clients([lazy.client(m) for m in range(4)])
    assert final(lazy, **choices) == final(kept, **choices)


@pytest.mark.torchrun
def test_ranks_make_the_same_samples():
    lazy = GeneratedStore(SIZES, points)
    assert final(lazy, backend=Torchrun(workers=2)) == final(lazy)


def test_of_a_million_clients_only_the_cohorts_are_made():
    made = []

    def make(client: int, rng: np.random.Generator):
        made.append(client)
        return points(client, rng)

    sizes = np.tile(SIZES, 250_000)
    torch.manual_seed(0)
    run(algorithm=FedAvg(), model=nn.Linear(5, 2), clients=GeneratedStore(sizes, make), rounds=3, cohort=50,
        progress="none")
    # The samples of a few clients show the oracle what samples look like.
    assert 3 * 50 - 5 <= len(set(made)) <= 3 * 50 + 50 and len(made) == len(set(made))


def final(clients, **choices) -> str:
    torch.manual_seed(0)
    return run(algorithm=FedAvg(lr=0.1), model=nn.Linear(5, 2), clients=clients, rounds=3, cohort=3,
               local=LocalWork(epochs=2, batch_size=2), progress="none", **choices).sha256
