"""A setup as bytes for another process; its large arrays as files that the processes share.

The bytes are a cloudpickle: they go from a coordinator to its own workers through a private folder
or Ray's object store, never over an open network.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import shutil
import sys
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from ..errors import WorkerError

LONGEST = 38     # characters of a path in which Ray can still make its sockets
LARGE = 1 << 20  # bytes from which an array goes to a file of its own
OWNER = "owner"  # the file in a private folder on which its process holds a lock for as long as it lives

held: dict[Path, int] = {}  # the locks of this process


def pack(thing: Any, folder: Path | None = None) -> bytes:
    """Return ``thing`` as bytes; with a folder, large arrays and tensors become files in it.

    Whoever unpacks maps these files into memory, copy on write: workers of one machine share one
    copy of what they only read.

    Raises:
        WorkerError: if something in it cannot be pickled, saying what.
    """
    file = io.BytesIO()
    try:
        Packer(file, folder).dump(thing)
    except (pickle.PicklingError, TypeError, RuntimeError, AttributeError) as e:
        raise WorkerError(f"this run cannot be sent to other processes ({type(e).__name__}: "
                          f"{' '.join(str(e).split())}); use backend=inprocess, or leave out of the model, loss and "
                          "data what cannot be pickled") from e
    return pickle.dumps((sys.path, file.getvalue()))


def unpack(parcel: bytes) -> Any:
    """Return what was packed; modules are looked for where the sender found them."""
    path, thing = pickle.loads(parcel)
    sys.path.extend(entry for entry in path if entry not in sys.path)
    return pickle.loads(thing)


def short_folder() -> Path:
    """Return a new private folder, with a path short enough for the sockets that Ray makes in it.

    Folders that processes left that were killed are removed on the occasion.
    """
    for there in {tempfile.gettempdir(), "/tmp"}:
        sweep(Path(there))
    folder = Path(tempfile.mkdtemp(prefix="fedlearn-"))
    if len(str(folder)) > LONGEST:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="fedlearn-", dir="/tmp"))
    for gone in [path for path in held if not path.exists()]:
        os.close(held.pop(gone))
    # Locked before it has its name, or another process could take it for a dead one's.
    fresh = folder / f"{OWNER}.part"
    lock = os.open(fresh, os.O_CREAT | os.O_WRONLY, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    fresh.rename(folder / OWNER)
    held[folder] = lock
    return folder


def sweep(there: Path) -> list[Path]:
    """Remove, and return, the private folders in ``there`` whose processes are dead: nobody holds their locks."""
    swept = []
    for owner in there.glob(f"fedlearn-*/{OWNER}"):
        with suppress(OSError):     # somebody else's, or being swept by another process
            lock = os.open(owner, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid != os.getuid():
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner.parent, ignore_errors=True)
                swept.append(owner.parent)
            finally:
                os.close(lock)
    return swept


class Packer(cloudpickle.Pickler):
    """A cloudpickler that puts large dense CPU arrays aside."""

    def __init__(self, file: io.BytesIO, folder: Path | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.folder = folder
        self.names = count()

    def reducer_override(self, obj: Any) -> Any:
        """Replace a large array by the file that it is written to."""
        if self.folder is not None:
            if type(obj) in (np.ndarray, np.memmap) and obj.nbytes >= LARGE and not obj.dtype.hasobject:
                return _mapped, (self._write(obj),)
            if type(obj) is Tensor and self._plain(obj):
                return _mapped_tensor, (self._write(obj.detach().numpy()),)
        return super().reducer_override(obj)

    @staticmethod
    def _plain(t: Tensor) -> bool:
        large = t.layout == torch.strided and t.numel() * t.element_size() >= LARGE
        return large and t.device.type == "cpu" and not t.requires_grad and t.dtype != torch.bfloat16

    def _write(self, array: np.ndarray) -> str:
        assert self.folder is not None
        path = self.folder / f"array{next(self.names)}.npy"
        np.save(path, array)
        return str(path)


def _mapped(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="c")


def _mapped_tensor(path: str) -> Tensor:
    return torch.from_numpy(np.asarray(_mapped(path)))
