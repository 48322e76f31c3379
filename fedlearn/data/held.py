"""Data that stays where it is: all machines know how many samples every client has, each holds some of the clients.

A folder of such data has two halves. What everybody may know is the same on every machine: ``federation.json``, with
the samples of every client, and the shape and type of a sample. What a machine holds is its own: ``clients.npy``, the
numbers of its clients in rising order, and their samples one client after another in ``features.npy`` and
``labels.npy``. A machine that coordinates holds nobody; it may have a test set (``test_features.npy``,
``test_labels.npy``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .federation import FEDERATION, Federation, Look
from .generated import GeneratedStore
from .store import ClientStore, mapped, save_array

HELD = ("clients.npy", "features.npy", "labels.npy")
TEST = ("test_features.npy", "test_labels.npy")


class HeldStore(ClientStore):
    """The clients of a federation, of whom those in ``holds`` (int64, rising) have their samples here.

    ``features`` [n, ...] and ``labels`` [n, ...] are the samples of the clients that are held, one after another;
    ``sizes`` int64 [clients] are the samples of all.

    Raises:
        DataError: if they do not belong together, naming the client where one does not.
    """

    def __init__(self, features: Tensor, labels: Tensor, sizes: Any, holds: Any, folder: Path | None = None,
                 files: Sequence[np.memmap] = ()) -> None:
        sizes, holds = np.asarray(sizes, dtype=np.int64), np.asarray(holds, dtype=np.int64)
        rising = holds.ndim == 1 and (np.diff(holds) > 0).all()
        if not rising or len(holds) and not 0 <= holds[0] <= holds[-1] < len(sizes):
            raise DataError(f"held clients: found {holds[:5].tolist()}, ...; allowed: the numbers of some of the "
                            f"{len(sizes)} clients, from 0, each once and in rising order.")
        here = np.zeros(len(sizes), dtype=np.int64)
        here[holds] = sizes[holds]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(here)])
        if not len(features) == len(labels) == offsets[-1]:
            raise DataError(f"held clients: found {len(features)} features and {len(labels)} labels; allowed: "
                            f"{offsets[-1]} of each, as {FEDERATION} says of these {len(holds)} clients.")
        for name, value in {"features": features, "labels": labels, "offsets": offsets, "sizes": sizes,
                            "holds": holds, "folder": folder, "mapped": files}.items():
            object.__setattr__(self, name, value)

    holds: np.ndarray

    def client(self, m: int) -> tuple[Tensor, Tensor]:
        """Return all samples of client m: views, nothing is copied.

        Raises:
            DataError: if its data is not here.
        """
        self.check(m)
        return super().client(m)

    def check(self, m: int) -> None:
        """Refuse a client whose data is not here.

        Raises:
            DataError: naming it.
        """
        if self.offsets[m] == self.offsets[m + 1]:
            where = f"in {self.folder}" if self.folder else "in this store"
            raise DataError(f"client {m}: its data is not here: found {len(self.holds)} of {len(self)} clients "
                            f"{where}; allowed: clients that this machine holds. Backends torchrun and ray, on several "
                            "machines, give every client to one that does.")

    def to(self, device: torch.device | str) -> HeldStore:
        """Return the store with its samples on a device."""
        return HeldStore(self.features.to(device), self.labels.to(device), self.sizes, self.holds)

    def common(self) -> Any:
        """Return what is the same on every machine."""
        return self.sizes, self.looks

    @cached_property
    def looks(self) -> tuple[Look, Look]:
        """The shape and type of a sample's features, and of its labels."""
        x, y = ((list(t.shape[1:]), str(t.dtype).removeprefix("torch.")) for t in (self.features, self.labels))
        return x, y

    def stand_in(self) -> GeneratedStore:
        """Return as many clients of the same sizes, with random samples of the same shape and type."""
        return GeneratedStore(self.sizes, Made(self.sizes, *self.looks))

    def save(self, folder: str | Path) -> None:
        """Write what is held to a folder, which has, or will have, the federation's file, too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = self.holds, self.features.numpy(), self.labels.numpy()
        for name, array in zip(HELD, arrays, strict=True):
            save_array(folder / name, array)

    @classmethod
    def open(cls, folder: str | Path) -> HeldStore:
        """Map what a folder holds into memory, read-only; without the files of held clients it is nobody.

        Raises:
            DataError: if a file is missing, damaged, or does not belong to the others.
        """
        folder = Path(folder).resolve()
        known = Federation.read(folder)
        if not any((folder / name).exists() for name in HELD):
            features, labels = (torch.empty(0, *shape, dtype=getattr(torch, kind))
                                for shape, kind in (known.features, known.labels))
            return cls(features, labels, known.sizes, [], folder)
        try:
            holds, x, y = (mapped(folder / name) for name in HELD)
            for name, array, asked in (("features", x, known.features), ("labels", y, known.labels)):
                if (found := (list(array.shape[1:]), str(array.dtype))) != (list(asked[0]), asked[1]):
                    raise ValueError(f"{name} are {found[1]} {found[0]}, and {asked[1]} {asked[0]} in {FEDERATION}")
            if holds.dtype.kind not in "iu":
                raise ValueError(f"{HELD[0]} holds {holds.dtype}, not whole numbers")
        except (OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError) as error:
            raise DataError(f"{folder}: {error}; allowed: {', '.join(HELD)}, as `fedlearn split` or "
                            "fedlearn.data.deal.hold writes them, or none of them.") from error
        with warnings.catch_warnings():     # torch warns that it cannot keep us from writing
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return cls(torch.from_numpy(x), torch.from_numpy(y), known.sizes, np.array(holds), folder,
                       [a for a in (x, y) if a.size])

    def __reduce__(self) -> tuple:
        if self.folder is not None:     # each machine opens its own
            return HeldStore.open, (str(self.folder),)
        return HeldStore, (self.features, self.labels, self.sizes, self.holds)


@dataclass(frozen=True)
class Made:
    """Random samples: normal numbers, or zeros where whole numbers are wanted."""

    sizes: np.ndarray
    features: Look
    labels: Look

    def __call__(self, m: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the features and labels of client m."""
        def draw(shape: Sequence[int], kind: str) -> Tensor:
            dtype, all_of_them = getattr(torch, kind), (int(self.sizes[m]), *shape)
            if not dtype.is_floating_point:
                return torch.zeros(all_of_them, dtype=dtype)
            return torch.from_numpy(rng.standard_normal(all_of_them)).to(dtype)

        return draw(*self.features), draw(*self.labels)


def test_set(folder: str | Path) -> tuple[Tensor, Tensor] | None:
    """Return the test set of a folder, if it has one.

    Raises:
        DataError: if it cannot be read.
    """
    paths = [Path(folder, name) for name in TEST]
    if not any(path.exists() for path in paths):
        return None
    try:
        x, y = (torch.from_numpy(np.array(mapped(path))) for path in paths)
    except (OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError) as error:
        raise DataError(f"{folder}: {error}; allowed: {' and '.join(TEST)}, or neither.") from error
    return x, y
