"""The clients' data: one feature tensor, one label tensor, one array of offsets; a client is a slice.

A store can be saved to a folder and opened again memory-mapped: many workers of one machine then
share one copy, and what is never touched is never read. Data that does not fit that form comes as
one ``torch.utils.data.Dataset`` per client (``DatasetStore``).
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from ..errors import DataError

FILES = ("features.npy", "labels.npy", "offsets.npy")


@dataclass(frozen=True, eq=False)
class ClientStore:
    """All clients' samples, sorted by client: client m owns ``offsets[m]:offsets[m + 1]``.

    ``features`` [n, ...] and ``labels`` [n, ...] are tensors, ``offsets`` is int64 [clients + 1].

    Raises:
        DataError: if the three do not belong together, or a client has no data (naming it).
    """

    features: Tensor
    labels: Tensor
    offsets: np.ndarray
    folder: Path | None = field(default=None, repr=False)  # where it was opened from
    mapped: Sequence[np.memmap] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        offsets = np.asarray(self.offsets, dtype=np.int64)
        object.__setattr__(self, "offsets", offsets)
        n = len(self.features)
        if len(self.labels) != n or offsets.ndim != 1 or not len(offsets) or offsets[0] or offsets[-1] != n:
            raise DataError(f"client store: found {n} features, {len(self.labels)} labels and offsets "
                            f"{offsets.ravel()[:1]} to {offsets.ravel()[-1:]}; allowed: as many labels as "
                            "features, offsets from 0 to that number.")
        require_data(np.diff(offsets))

    @cached_property
    def sizes(self) -> np.ndarray:
        """The samples of each client, int64 [clients]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.offsets) - 1

    def client(self, m: int) -> tuple[Tensor, Tensor]:
        """Return all samples of client m: views, nothing is copied."""
        start, stop = self.offsets[m], self.offsets[m + 1]
        return self.features[start:stop], self.labels[start:stop]

    def batch(self, m: int, index: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return copies of the samples ``index`` [b] of client m, counted from its first."""
        x, y = self.client(m)
        index = torch.as_tensor(index, dtype=torch.int64, device=x.device)
        return x.index_select(0, index), y.index_select(0, index)

    def example(self) -> tuple[Tensor, Tensor]:
        """Return one sample's features [1, ...] and label [1, ...] as all of them look, not one that there is."""
        return tuple(t.new_zeros(1, *t.shape[1:]) for t in (self.features, self.labels))  # type: ignore[return-value]

    def expect(self, clients: Sequence[int]) -> None:
        """Have the samples of these clients read from disk meanwhile, all at once, where the store is mapped.

        Each client is asked for once, or always where the store is too large to stay in memory.
        """
        ids = np.asarray(clients, dtype=np.int64)
        if not self.mapped or not len(ids):
            return
        if self._stays:
            ids = ids[~self._asked[ids]]
            self._asked[ids] = True
        for first, stop in zip(self.offsets[ids].tolist(), self.offsets[ids + 1].tolist(), strict=True):
            for array in self.mapped:
                start = array.offset % mmap.ALLOCATIONGRANULARITY + first * array.strides[0]
                page = start // mmap.PAGESIZE * mmap.PAGESIZE
                file: mmap.mmap = array._mmap  # type: ignore[attr-defined]
                file.madvise(mmap.MADV_WILLNEED, page, start - page + (stop - first) * array.strides[0])

    @cached_property
    def _asked(self) -> np.ndarray:
        return np.zeros(len(self), dtype=bool)

    @cached_property
    def _stays(self) -> bool:
        return sum(a.nbytes for a in self.mapped) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2

    def to(self, device: torch.device | str) -> ClientStore:
        """Return the store with its samples on a device."""
        return ClientStore(self.features.to(device), self.labels.to(device), self.offsets)

    def save(self, folder: str | Path) -> None:
        """Write the store to a folder (three .npy files), each file atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = self.features.numpy(), self.labels.numpy(), self.offsets
        for name, array in zip(FILES, arrays, strict=True):
            save_array(folder / name, array)

    @classmethod
    def open(cls, folder: str | Path) -> ClientStore:
        """Map a saved store into memory, read-only: writing to its tensors ends the process.

        Raises:
            DataError: if a file is missing, cut short or does not belong to the others.
        """
        folder = Path(folder).resolve()
        try:
            features, labels, offsets = (mapped(folder / name) for name in FILES)
            if offsets.dtype.kind not in "iu" or offsets.ndim != 1:
                raise ValueError(f"{FILES[2]} holds {offsets.dtype} {list(offsets.shape)}, not whole numbers in a row")
        except (OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError, TokenError) as error:
            raise DataError(f"client store {folder}: {error}; allowed: a folder written by ClientStore.save, "
                            f"with {', '.join(FILES)}; save it again.") from error
        with warnings.catch_warnings():  # torch warns that it cannot keep us from writing
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            files = [a for a in (features, labels) if a.size and hasattr(mmap, "MADV_WILLNEED")]
            return cls(torch.from_numpy(features), torch.from_numpy(labels), np.array(offsets), folder, files)

    def __reduce__(self) -> tuple:
        if self.folder is not None:
            return ClientStore.open, (str(self.folder),)
        return ClientStore, (self.features, self.labels, self.offsets)

    @classmethod
    def from_parts(cls, x: Any, y: Any, parts: Sequence[Any]) -> ClientStore:
        """Gather the samples of each client: ``parts[m]`` holds the indices into x and y of client m.

        Raises:
            DataError: if a client has no data, naming it.
        """
        x, y = _features(x), _labels(y)
        arrays = [np.asarray(part, dtype=np.int64).reshape(-1) for part in parts]
        sizes = np.array([len(part) for part in arrays], dtype=np.int64)
        require_data(sizes)
        index = torch.from_numpy(np.concatenate(arrays))
        return cls(x.index_select(0, index), y.index_select(0, index), _offsets(sizes))

    @classmethod
    def from_clients(cls, clients: Sequence[tuple[Any, Any]]) -> ClientStore:
        """Join one (features, labels) pair of arrays or tensors per client.

        Integer labels become int64, which PyTorch's losses expect; nothing else is converted.

        Raises:
            DataError: if a client has no data, not one label per sample, or samples of another
                shape or type than client 0, naming it.
        """
        pairs = [(_features(x), _labels(y)) for x, y in clients]
        for m, (x, y) in enumerate(pairs):
            if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
                raise DataError(f"client {m}: found features of shape {list(x.shape)} and labels of shape "
                                f"{list(y.shape)}; allowed: one label per sample.")
            for what, mine, first in (("features", x, pairs[0][0]), ("labels", y, pairs[0][1])):
                if mine.shape[1:] != first.shape[1:] or mine.dtype != first.dtype:
                    raise DataError(f"client {m}: found {what} [n{_tail(mine)}] of {mine.dtype}; allowed: "
                                    f"[n{_tail(first)}] of {first.dtype}, as client 0 has them.")
        sizes = np.array([len(x) for x, _ in pairs], dtype=np.int64)
        require_data(sizes)
        return cls(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]), _offsets(sizes))


class DatasetStore:
    """One map-style ``torch.utils.data.Dataset`` of (features, label) samples per client.

    Samples are fetched one by one and joined by ``default_collate``: slower than a ``ClientStore``,
    but for any data. To send it to another process the datasets must be picklable.

    Raises:
        DataError: if a client has no data, naming it.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = list(datasets)
        self.sizes = np.array([len(d) for d in self.datasets], dtype=np.int64)  # type: ignore[arg-type]
        require_data(self.sizes)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self.datasets)

    def client(self, m: int) -> tuple[Tensor, Tensor]:
        """Return all samples of client m."""
        return self.batch(m, range(int(self.sizes[m])))

    def batch(self, m: int, index: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the samples ``index`` [b] of client m.

        Raises:
            DataError: if the dataset's samples are not (features, label) pairs.
        """
        samples = [self.datasets[m][int(i)] for i in index]
        if not isinstance(samples[0], tuple | list) or len(samples[0]) != 2:
            raise DataError(f"client {m}: found samples of type {type(samples[0]).__name__}; allowed: "
                            "(features, label) pairs from the dataset's __getitem__.")
        x, y = default_collate(samples)
        return x, y


def as_store(clients: Any) -> Any:
    """Make a store of one (features, labels) pair, or one map-style Dataset, per client.

    A store, which is anything with ``sizes``, ``client(m)`` and ``batch(m, index)``, is returned as it is.

    Raises:
        DataError: if the clients are of another kind, naming the first such client.
    """
    if all(hasattr(clients, name) for name in ("sizes", "client", "batch")):
        return clients
    if not isinstance(clients, Sequence):
        raise DataError(f"client data: found {type(clients).__name__}; allowed: a ClientStore, or a list "
                        "with one (features, labels) pair or one Dataset per client.")
    if all(type(c) is TensorDataset and len(c.tensors) == 2 for c in clients):
        return ClientStore.from_clients([c.tensors for c in clients])
    if all(isinstance(c, Dataset) and hasattr(c, "__len__") for c in clients):
        return DatasetStore(clients)
    for m, c in enumerate(clients):
        if not isinstance(c, tuple | list) or len(c) != 2:
            raise DataError(f"client {m}: found {type(c).__name__}; allowed: a (features, labels) pair for "
                            "every client, or a map-style Dataset (with __len__) for every client.")
    return ClientStore.from_clients(clients)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a .npy file, atomically."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)


def mapped(path: Path) -> np.memmap:
    """Map an array of numbers, with at least one dimension, into memory."""
    if not path.is_file():      # to open something else might wait for ever
        raise FileNotFoundError(2, "No such file", str(path))
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap) or array.dtype.kind not in "biuf" or not array.dtype.isnative or not array.ndim:
        raise ValueError(f"{path.name} is no file of numbers that this machine can map")
    return array


def _features(x: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach()
    try:
        array = np.ascontiguousarray(x)
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError) as error:
        raise DataError(f"client data: found {type(x).__name__} ({error}); allowed: numeric arrays or "
                        "tensors.") from error


def _labels(y: Any) -> Tensor:
    y = _features(y)
    return y if y.is_floating_point() else y.to(torch.int64)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def _tail(x: Tensor) -> str:
    return "".join(f", {d}" for d in x.shape[1:])


def require_data(sizes: np.ndarray) -> None:
    """Refuse a federation without clients, or a client without data."""
    if not len(sizes):
        raise DataError("client data: found 0 clients; allowed: at least 1.")
    if sizes.min() < 1:
        m = int(np.argmax(sizes < 1))
        raise DataError(f"client {m} has no data (one of {int((sizes < 1).sum())} such of {len(sizes)} "
                        "clients); allowed: at least 1 sample per client; leave it out or give it data.")
