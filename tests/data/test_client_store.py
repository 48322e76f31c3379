"""The client store: slices, batches, memory mapping, pickling, and wrong inputs."""

from __future__ import annotations

import mmap
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from fedlearn.data.raw import RawData
from fedlearn.data.store import ClientStore, DatasetStore, as_store
from fedlearn.errors import DataError


def small() -> ClientStore:
    return ClientStore(torch.arange(12.0).reshape(6, 2), torch.arange(6), np.array([0, 1, 4, 6]))


class Squares(Dataset):
    """Sample i is (i, i squared)."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(i)]), i * i


def equal(a: ClientStore, b: ClientStore) -> bool:
    return (torch.equal(a.features, b.features) and torch.equal(a.labels, b.labels)
            and np.array_equal(a.offsets, b.offsets))


def test_a_client_is_a_slice_without_a_copy():
    store = small()
    assert len(store) == 3
    assert store.sizes.tolist() == [1, 3, 2] and store.sizes.dtype == np.int64
    x, y = store.client(1)
    assert x.tolist() == [[2, 3], [4, 5], [6, 7]] and y.tolist() == [1, 2, 3]
    assert x.data_ptr() == store.features[1:].data_ptr()


@pytest.mark.parametrize("index", [torch.tensor([2, 0, 2]), np.array([2, 0, 2]), [2, 0, 2],
                                   np.array([2, 0, 2], dtype=np.int32)], ids=lambda i: type(i).__name__)
def test_a_batch_counts_from_the_clients_first_sample(index):
    x, y = small().batch(1, index)
    assert y.tolist() == [3, 1, 3] and x.tolist() == [[6, 7], [2, 3], [6, 7]]


def test_a_batch_never_reaches_into_the_next_client():
    with pytest.raises(IndexError):
        small().batch(0, [1])


def test_save_and_open_give_the_same_store_memory_mapped(tmp_path):
    store = small()
    store.save(tmp_path / "store")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = ClientStore.open(tmp_path / "store")
    assert equal(store, opened)
    assert opened.batch(2, [1])[1].tolist() == [5]
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "store" / "features.npy") in maps.read_text()
    names = sorted(p.name for p in (tmp_path / "store").iterdir())
    assert names == ["features.npy", "labels.npy", "offsets.npy"]


def test_saving_again_does_not_disturb_who_has_it_open(tmp_path):
    small().save(tmp_path)
    opened = ClientStore.open(tmp_path)
    ClientStore(torch.zeros(2, 2), torch.zeros(2), np.array([0, 2])).save(tmp_path)
    assert equal(opened, small())
    assert len(ClientStore.open(tmp_path)) == 1


def test_pickling_an_opened_store_sends_only_its_path(tmp_path, monkeypatch):
    store = ClientStore(torch.rand(10_000, 4), torch.zeros(10_000), np.array([0, 10_000]))
    store.save(tmp_path / "a" / "store")
    monkeypatch.chdir(tmp_path)
    opened = ClientStore.open("a/store")
    message = pickle.dumps(opened)
    assert len(message) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(message)
    assert equal(again, store) and again.folder == opened.folder


def test_pickling_a_store_in_memory_sends_its_arrays():
    again = pickle.loads(pickle.dumps(small()))
    assert equal(again, small()) and again.folder is None


def test_from_clients_joins_arrays_and_tensors():
    store = ClientStore.from_clients([(np.ones((2, 3), np.float32), np.array([1, 0], np.uint8)),
                                      (torch.zeros(1, 3), torch.tensor([4]))])
    assert store.features.dtype == torch.float32 and store.labels.dtype == torch.int64
    assert store.offsets.tolist() == [0, 2, 3] and store.labels.tolist() == [1, 0, 4]


def test_real_labels_stay_real():
    assert ClientStore.from_clients([(np.ones((2, 1)), np.array([0.5, 1.5]))]).labels.dtype == torch.float64


def test_a_store_does_not_share_memory_with_what_it_was_made_from():
    x, y = np.ones((2, 1)), np.zeros(2, dtype=np.int64)
    for store in (ClientStore.from_clients([(x, y)]), ClientStore.from_parts(x, y, [[0, 1]])):
        store.features.zero_()
        store.labels.fill_(7)
    assert x.sum() == 2 and y.sum() == 0


def test_from_parts_gathers_each_client():
    store = ClientStore.from_parts(torch.arange(4.0), [10, 11, 12, 13], [[3, 0], (1,)])
    assert store.client(0)[1].tolist() == [13, 10] and store.client(1)[0].tolist() == [1.0]


def test_as_store_takes_pairs_datasets_and_stores():
    store = small()
    assert as_store(store) is store
    assert isinstance(as_store([(np.ones((1, 2)), [0])]), ClientStore)
    assert isinstance(as_store([TensorDataset(torch.ones(1, 2), torch.zeros(1))]), ClientStore)
    datasets = as_store([Squares(3), Squares(2)])
    assert isinstance(datasets, DatasetStore) and as_store(datasets) is datasets
    assert datasets.sizes.tolist() == [3, 2] and len(datasets) == 2


def test_a_dataset_store_has_the_same_face():
    store = pickle.loads(pickle.dumps(DatasetStore([Squares(3), Squares(4)])))
    x, y = store.batch(1, torch.tensor([3, 1]))
    assert x.tolist() == [[3.0], [1.0]] and y.tolist() == [9, 1]
    assert store.client(0)[1].tolist() == [0, 1, 4]


def zeros(n: int, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(n, d), torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ClientStore(*zeros(3), np.array([0, 2, 2, 3])), 
     "client 1 has no data (one of 1 such of 3 clients)"),
    (lambda: ClientStore(*zeros(3), np.array([0, 2])), "offsets from 0 to that number"),
    (lambda: ClientStore(*zeros(3), np.array([])), "offsets from 0 to that number"),
    (lambda: ClientStore(*zeros(3), np.array([1, 3])), "offsets from 0 to that number"),
    (lambda: ClientStore(zeros(3)[0], zeros(2)[1], np.array([0, 3])), "found 3 features, 2 labels"),
    (lambda: ClientStore.from_parts(*zeros(3), [[0], [], []]), 
     "client 1 has no data (one of 2 such of 3 clients)"),
    (lambda: ClientStore.from_parts(*zeros(3), []), "found 0 clients"),
    (lambda: ClientStore.from_clients([]), "found 0 clients"),
    (lambda: as_store([]), "found 0 clients"),
    (lambda: as_store([zeros(2), zeros(0)]), "client 1 has no data"),
    (lambda: as_store([zeros(2), (torch.zeros(2, 2), torch.zeros(1))]), "client 1: found features of shape "
     "[2, 2] and labels of shape [1]; allowed: one label per sample"),
    (lambda: as_store([zeros(2), zeros(2, 3)]), 
     "client 1: found features [n, 3] of torch.float32; allowed: [n, 2]"),
    (lambda: as_store([zeros(2), (torch.zeros(2, 2), torch.zeros(2))]),
     "client 1: found labels [n] of torch.float32; allowed: [n] of torch.int64"),
    (lambda: as_store(zeros(2)), 
     "client 0: found Tensor; allowed: a (features, labels) pair for every client"),
    (lambda: as_store([zeros(2), Squares(2)]), "client 1: found Squares"),
    (lambda: as_store({"a": 1}), "client data: found dict; allowed: a ClientStore, or a list"),
    (lambda: as_store([(["a"], [0])]), "client data: found list"),
    (lambda: as_store([([[1, 2], [3]], [0, 1])]), "client data: found list"),
    (lambda: DatasetStore([Squares(2), Squares(0)]), "client 1 has no data"),
    (lambda: DatasetStore([TensorDataset(torch.zeros(2))]).batch(0, [0]), "client 0: found samples of type "
     "tuple; allowed: (features, label) pairs"),
])
def test_wrong_client_data_is_refused(make, message):
    with pytest.raises(DataError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_folder_is_refused_with_its_name(tmp_path, damage):
    small().save(tmp_path)
    file = tmp_path / "labels.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        np.save(file, np.zeros(7))
    with pytest.raises(DataError, match="client store"):
        ClientStore.open(tmp_path)


def test_raw_data_that_does_not_belong_together_is_refused():
    with pytest.raises(DataError, match="test data: found 2 features and 3 labels"):
        RawData(*zeros(2), zeros(2)[0], zeros(3)[1], classes=1)
    with pytest.raises(DataError, match="groups: found 1 entries for 2 training samples"):
        RawData(*zeros(2), *zeros(2), classes=1, groups=np.array([0]))


class Recorded:
    """What is asked of a mapping, by byte."""

    def __init__(self) -> None:
        self.asked: set[int] = set()
        self.calls = 0

    def madvise(self, option: int, start: int, length: int) -> None:
        assert option == mmap.MADV_WILLNEED and start % mmap.PAGESIZE == 0
        self.asked |= set(range(start, start + length))
        self.calls += 1


@pytest.mark.parametrize("stays", [True, False])
def test_expected_clients_are_read_ahead_and_no_others(tmp_path: Path, stays: bool) -> None:
    sizes = [300, 1, 700, 20]
    ClientStore.from_clients([(np.ones((n, 9), np.float32), np.zeros(n)) for n in sizes]).save(tmp_path)
    store = ClientStore.open(tmp_path)
    store.expect([0, 3])                # the real call
    store = ClientStore.open(tmp_path)
    store.__dict__["_stays"] = stays
    recorded = []
    for array in store.mapped:
        recorded.append(Recorded())
        array._mmap = recorded[-1]      # type: ignore[attr-defined]
    store.expect([2, 1])
    store.expect([1])
    for array, seen in zip(store.mapped, recorded, strict=True):
        row = array.strides[0]
        begin = array.offset + 300 * row
        assert set(range(begin, array.offset + 1001 * row)) <= seen.asked
        assert min(seen.asked) > begin - mmap.PAGESIZE and max(seen.asked) < array.offset + 1001 * row
        assert seen.calls == (2 if stays else 3)


def test_a_store_in_memory_expects_nothing() -> None:
    store = ClientStore.from_clients([(np.ones((2, 3), np.float32), np.zeros(2))])
    store.expect([0])
    assert store.mapped == ()
