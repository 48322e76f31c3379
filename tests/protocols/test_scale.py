"""A round costs what its cohort costs, however many clients there are: counted, not timed."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.api import run
from fedlearn.data.store import ClientStore
from fedlearn.experiment import Experiment
from fedlearn.policies.sampling import CyclicSampling, ProportionalSampling, UniformSampling
from fedlearn.policies.weighting import RatioWeighting, SchemeOne
from fedlearn.worker.states import States

POPULATION, COHORT, ROUNDS = 1_000_000, 50, 4


class Counted(np.ndarray):
    """An array that counts how many of its entries are read; what is computed from it is plain."""

    read = 0

    def __getitem__(self, index: Any) -> Any:
        found = self.view(np.ndarray)[index]
        Counted.read += np.size(found)
        return found

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        Counted.read += sum(x.size for x in inputs if isinstance(x, Counted))
        return getattr(ufunc, method)(*plain, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in args]
        Counted.read += sum(x.size for x in args if isinstance(x, Counted))
        return function(*plain, **kwargs)

    def __iter__(self) -> Any:
        Counted.read += self.size
        return iter(self.view(np.ndarray))


@pytest.fixture(scope="module")
def store() -> ClientStore:
    """One or two samples of each of a million clients, in arrays that count."""
    sizes = np.tile([1, 2], POPULATION // 2)
    n = int(sizes.sum())
    store = ClientStore(torch.ones(n, 1), torch.arange(n) % 2, np.concatenate([[0], np.cumsum(sizes)]))
    object.__setattr__(store, "offsets", store.offsets.view(Counted))
    store.__dict__["sizes"] = sizes.view(Counted)
    return store


class Watch:
    """A tracker that starts to count after the second round, when all that is done once is done."""

    def started(self, folder: Any, config: Any) -> None:
        pass

    def round(self, line: dict[str, Any]) -> None:
        if line["round"] == 2:
            Counted.read = 0
            tracemalloc.start()

    def finished(self, summary: Any) -> None:
        self.read, self.peak = Counted.read, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def test_the_arrays_count() -> None:
    sizes = np.arange(10).view(Counted)
    for use, reads in ((lambda: sizes[3], 1), (lambda: sizes[[1, 2]], 2), (lambda: sizes.sum(), 10),
                       (lambda: sizes.max(), 10), (lambda: np.cumsum(sizes), 10), (lambda: sizes / 2, 10),
                       (lambda: list(sizes), 10), (lambda: sizes[:], 10)):
        Counted.read = 0
        use()
        assert Counted.read == reads


@pytest.mark.parametrize(("algorithm", "choices"), [
    (FedAvg(), {"sampling": UniformSampling(), "weighting": RatioWeighting()}),
    (FedAvg(), {"sampling": ProportionalSampling(), "weighting": SchemeOne()}),
    (Scaffold(), {"sampling": CyclicSampling(), "weighting": RatioWeighting()}),
    (FedBuff(buffer=COHORT), {}),
], ids=["uniform", "proportional", "scaffold cyclic", "fedbuff"])
def test_a_round_reads_and_allocates_in_proportion_to_the_cohort(algorithm, choices, store, tmp_path):
    torch.manual_seed(0)
    watch = Watch()
    run(algorithm=algorithm, model=nn.Linear(1, 2), clients=store, rounds=ROUNDS, cohort=COHORT, trackers=[watch],
        progress="none", folder=tmp_path / "run", checkpoint_every=1, **choices)
    # Per client and round: its size for its weight, its steps, its batches and its record, and where its samples begin.
    assert 0 < watch.read <= 6 * COHORT * (ROUNDS - 2)
    assert watch.peak < POPULATION    # bytes: an eighth of one array over the population


def test_what_identifies_a_run_is_computed_once(tmp_path, monkeypatch):
    from problems import blobs, experiment

    from fedlearn.running.execute import execute
    from fedlearn.tracking.run_folder import RunFolder
    task, calls = blobs(), []
    initial = task.initial
    monkeypatch.setattr(task, "initial", lambda seed: calls.append(seed) or initial(seed))
    e: Experiment = experiment(FedAvg(), rounds=5, task=task, checkpoint_every=1)
    execute(e, RunFolder(tmp_path), check_resources=False)
    assert len(calls) == 4    # of the server, of the worker, of the trial of stacks and of the identity


def test_the_count_of_states_in_memory_is_right(tmp_path):
    template = torch.zeros(4)
    states = States(template, tmp_path, memory=7 * 16)
    rng = np.random.default_rng(0)
    accepted: dict[int, int] = {}
    for version in range(60):
        client = int(rng.integers(12))
        if client in accepted:
            states.settle({client: accepted[client]})
        states.put(client, version, torch.full((4,), float(version)))
        accepted[client] = version
        if version % 20 == 19:
            states.flush(accepted.items())
        assert states.count == sum(map(len, states.held.values())) <= 7
