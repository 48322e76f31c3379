"""Client states on disk: the bytes that were put, bounded memory with and without a folder, and what damage says."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
import torch
from problems import experiment, play

from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.inprocess import InProcessWorkers
from fedlearn.errors import CheckpointError
from fedlearn.running.execute import execute
from fedlearn.vectors import digest, tree_flat
from fedlearn.worker.state_files import HEAD, Spill
from fedlearn.worker.states import States


def tree(seed: int):
    """A state of several types and shapes, some of which start at odd bytes in the file."""
    g = torch.Generator().manual_seed(seed)
    return {"flags": torch.rand(3, generator=g) < 0.5, "wide": torch.rand(5, generator=g, dtype=torch.float64),
            "none": torch.empty(0), "low": torch.rand(2, 3, generator=g).bfloat16(), "x": torch.rand(7, generator=g),
            "count": torch.tensor(seed), "view": torch.rand(4, 6, generator=g).t()}


@pytest.mark.parametrize("through", [False, True])
def test_a_state_comes_back_from_its_file_as_it_was(tmp_path, through):
    states = States(tree(0), tmp_path, through)
    for client in range(4):
        states.put(client, 7, tree(client))
    states.flush([(client, 7) for client in range(4)])
    other = States(tree(0), tmp_path)
    for client in range(4):
        read, put = tree_flat(other.get(client, 7)), tree_flat(tree(client))
        assert list(read) == list(put)
        for name, t in put.items():
            assert torch.equal(read[name], t) and read[name].dtype == t.dtype and read[name].shape == t.shape
    assert {path.stat().st_size for path in tmp_path.iterdir()} == {HEAD + states.size}


def test_without_a_folder_memory_is_bounded_too_and_nothing_is_left_behind():
    states = States(torch.zeros(1000), memory=10 * 4000)
    for m in range(8):
        states.put(m, 0, torch.full((1000,), float(m)))
    assert states.files is None    # no file is made before it is needed
    for m in range(8, 50):
        states.put(m, 0, torch.full((1000,), float(m)))
        assert states.count <= 10
    assert [states.get(m, 0)[0].item() for m in (0, 25, 49)] == [0, 25, 49]
    spill = states.files
    assert isinstance(spill, Spill) and len(spill.places) == 40
    states.flush([(m, 0) for m in range(45, 50)])    # as a checkpoint says which states count
    states.prune([(m, 0) for m in range(20, 50)])
    assert len(spill.places) == 20 and states.get(20, 0)[0].item() == 20
    with pytest.raises(CheckpointError, match="client 0 as of work 0"):
        states.get(0, 0)
    for m in range(50, 80):     # into the places of those that are gone
        states.put(m, 0, torch.full((1000,), float(m)))
    assert [states.get(m, 0)[0].item() for m in (20, 39, 45, 52, 79)] == [20, 39, 45, 52, 79]
    assert os.fstat(spill.file.fileno()).st_size == 45 * spill.encoding.size == 45 * (HEAD + 4000)
    assert os.fstat(spill.file.fileno()).st_nlink == 0, "a name would be left behind by a process that is killed"
    close = spill.close
    del states, spill
    gc.collect()
    assert not close.alive


def test_what_is_on_disk_is_not_written_again(tmp_path):
    states = States(torch.zeros(4), tmp_path, memory=2 * 16)
    states.put(0, 0, torch.ones(4))
    states.flush([(0, 0)])
    path = tmp_path / "0.0.state"
    before = path.stat().st_ino
    for m in range(1, 5):    # evicts client 0
        states.put(m, 0, torch.ones(4))
    assert 0 not in states.held and path.stat().st_ino == before
    states.prune([])
    states.put(0, 0, torch.full((4,), 2.0))
    states.flush([(0, 0)])
    assert torch.equal(States(torch.zeros(4), tmp_path).get(0, 0), torch.full((4,), 2.0))


def test_a_run_without_a_folder_lets_go_of_replaced_states(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    commit = InProcessWorkers.commit

    def watched(self: InProcessWorkers, *args: Any) -> None:
        commit(self, *args)
        assert self.worker.states is not None
        held.append({client: list(versions) for client, versions in self.worker.states.held.items()})

    monkeypatch.setattr(InProcessWorkers, "commit", watched)
    with_folder = execute(experiment(Scaffold(lr=0.1), rounds=23, cohort=3))
    assert len(held) == 2 and all(len(versions) == 1 for versions in held[-1].values())
    assert with_folder.sha256 == digest(play(experiment(Scaffold(lr=0.1), rounds=23, cohort=3))[0])


def test_a_replaced_state_is_let_go_of_by_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    most = []
    put = States.put

    def watched(self: States, *args: Any) -> None:
        put(self, *args)
        most.append(self.count - len(self.held))

    monkeypatch.setattr(States, "put", watched)
    execute(experiment(Scaffold(lr=0.1), rounds=20, cohort=3, checkpoint_every=0))
    # Of clients in the present cohort alone are there two states: the one it starts from and the one it makes.
    assert 0 < max(most) <= 3
