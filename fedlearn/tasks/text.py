"""Python's own source code: real text, on every machine, that comes in natural clients.

Next-byte prediction (as next-character prediction on Shakespeare, one client per role, in McMahan et
al., AISTATS 2017, section 3): each package or top-level module of the standard library is a client.
It is the same wherever the same Python is installed; versions (and distributors, here and there) differ.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.raw import RawData
from ..errors import DataError, in_range

# Distributions pack these separately, so they are not on every machine.
OPTIONAL = {"distutils", "ensurepip", "idlelib", "lib2to3", "test", "tkinter", "turtle", "turtledemo", "venv"}
TESTS = {"test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Text:
    """Predict the next byte; features int64 [n, length], labels int64 [n, length], 256 classes.

    ``length`` is the bytes in a window; ``samples_per_client`` the most training windows of a client.
    The last fifth of each client's text is for the test (at most an eighth of ``samples_per_client``
    windows, pooled over the clients). A module with less than a quarter of ``samples_per_client``
    training windows is joined with the other small ones that follow it in the alphabet.
    """

    length: int = 64
    samples_per_client: int = 128

    def __post_init__(self) -> None:
        in_range("task.length", self.length, least=1, most=65536)
        in_range("task.samples_per_client", self.samples_per_client, least=4)

    def load(self) -> RawData:
        """Return the data, with the clients as groups.

        Raises:
            DataError: if the standard library has no source files here, or too few.
        """
        folder = Path(sysconfig.get_paths()["stdlib"])
        names, texts = self._merge(read_sources(folder))
        if not names:
            raise DataError(f"task=text: found less than one client's text in the standard library's sources "
                            f"in {folder}; allowed: a Python with .py files and at least "
                            f"{self._windows_needed() * self.length} bytes; lower task.length or "
                            "task.samples_per_client.")
        train, test = zip(*(self._windows(text) for text in texts), strict=True)
        groups = np.repeat(np.arange(len(train)), [len(part) for part in train])
        return RawData(*_pairs(train), *_pairs(test), classes=256, groups=groups, group_names=tuple(names))

    def _windows_needed(self) -> int:
        return max(2, self.samples_per_client // 4 * 5 // 4)

    def _merge(self, sources: Iterator[tuple[str, bytes]]) -> tuple[list[str], list[bytes]]:
        """Return the clients' names and texts: large modules alone, small ones joined."""
        needed = self._windows_needed() * self.length + 1
        clients: dict[str, bytes] = {}
        small: list[str] = []
        joined = b""
        last_joined = None
        for name, text in sources:
            if len(text) >= needed:
                clients[name] = text
                continue
            small.append(name)
            joined += text
            if len(joined) >= needed:
                last_joined = "+".join(small)
                clients[last_joined] = joined
                small, joined = [], b""
        if small and last_joined:  # what is left over goes to the last of the joined ones
            clients["+".join([last_joined, *small])] = clients.pop(last_joined) + joined
        return list(clients), list(clients.values())

    def _windows(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return training and test windows, uint8 [n, length + 1]: neighbours share one byte."""
        steps = (len(text) - 1) // self.length
        bytes_ = np.frombuffer(text, dtype=np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(bytes_, self.length + 1)[:: self.length][:steps]
        held_out = max(1, steps // 5)
        return (windows[: min(steps - held_out, self.samples_per_client)],
                windows[steps - held_out:][: max(1, self.samples_per_client // 8)])


def read_sources(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, source text) of the standard library's packages and modules, in order of their names."""
    for name in sorted(sys.stdlib_module_names - OPTIONAL):
        files = [folder / f"{name}.py", *sorted((folder / name).rglob("*.py"))]
        text = b"".join(file.read_bytes() for file in files
                        if file.is_file() and not TESTS & set(file.relative_to(folder).parts))
        if text:
            yield name, text.replace(b"\r\n", b"\n")


def _pairs(parts: tuple[np.ndarray, ...]) -> tuple[Tensor, Tensor]:
    windows = torch.from_numpy(np.concatenate(parts)).long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
