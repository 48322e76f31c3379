"""The picture of a partition: counts, table and heat map."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from fedlearn.data.picture import counts, counts_table, heat_map
from fedlearn.data.store import ClientStore, DatasetStore
from fedlearn.errors import DataError


class Pairs(Dataset):
    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[float, int]:
        return 0.0, self.labels[i]


def test_counts_per_client_and_class():
    clients = [[0, 2, 2], [1]]
    expected = [[1, 0, 2, 0], [0, 1, 0, 0]]
    store = ClientStore.from_clients([(torch.zeros(len(y)), torch.tensor(y)) for y in clients])
    assert counts(store, 4).tolist() == expected
    assert counts(DatasetStore([Pairs(y) for y in clients]), 4).tolist() == expected


def test_every_position_of_a_sequence_counts():
    store = ClientStore.from_clients([(torch.zeros(2, 3), torch.tensor([[0, 1, 1], [1, 2, 0]]))])
    assert counts(store, 3).tolist() == [[2, 3, 1]]


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0.5, 1.0]], ids=str)
def test_labels_that_are_no_classes_are_refused(labels):
    store = ClientStore.from_clients([(torch.zeros(2), torch.tensor(labels))])
    with pytest.raises(DataError, match=r"client 0: found labels from .* whole numbers from 0 to 2"):
        counts(store, 3)


def test_a_small_table_has_a_row_for_each_client():
    lines = counts_table(np.array([[1, 0, 20], [0, 3, 0]]), ["amber", "blue"]).splitlines()
    assert lines[0] == "2 clients, 24 labels, 3 classes"
    assert lines[2].split() == ["client", "labels", "classes", "main", "0", "1", "2"]
    assert lines[3].split() == ["0", "amber", "21", "2", "2:", "95%", "1", ".", "20"]
    assert lines[4].split() == ["1", "blue", "3", "1", "1:", "100%", ".", "3", "."]
    assert lines[-1].split() == ["all", "24", "3", "1", "3", "20"]
    assert len({len(line) for line in lines[2:5]}) == 1


def test_a_large_table_shows_quantiles_and_the_extremes():
    table = np.ones((1000, 300), dtype=np.int64)
    table[7, 5] = 100
    text = counts_table(table)
    lines = text.splitlines()
    assert all(s in text for s in ("labels per client", "the 10 largest clients", "the 10 smallest clients"))
    assert lines[lines.index("the 10 largest clients") + 2].split() == ["7", "399", "300", "5:", "25%"]
    assert len(lines) < 40 and max(map(len, lines)) < 120


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (10, 10), (1000, 10), (50, 256)])
def test_a_heat_map_is_a_png(tmp_path, clients, classes):
    table = np.random.default_rng(0).integers(0, 50, (clients, classes))
    heat_map(table, tmp_path / "new" / "map.png", "a title")
    content = (tmp_path / "new" / "map.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, fedlearn.data.picture; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
