"""What every contestant reads: one prepared folder with data, cohorts, batch order and initial weights.

This needs only NumPy and PyTorch, so that each peer can read it in an environment of its own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ARRAYS = ("features", "labels", "offsets", "test_x", "test_y", "initial", "cohorts", "order", "starts")


@dataclass(frozen=True, eq=False)
class Case:
    """A prepared workload.

    Client m owns rows ``offsets[m]:offsets[m + 1]`` of ``features`` and ``labels``. Round r has the
    clients ``cohorts[r]`` [cohort]; the i-th of them visits its samples in the order
    ``order[starts[p]:starts[p + 1]]``, p = r cohort + i, in batches of ``batch``.
    """

    about: dict[str, Any]
    features: Tensor
    labels: Tensor
    offsets: np.ndarray
    test_x: Tensor
    test_y: Tensor
    initial: np.ndarray
    cohorts: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def open(cls, folder: str | Path) -> Case:
        """Map a prepared folder into memory, read-only."""
        folder = Path(folder)
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        with warnings.catch_warnings():  # torch warns that it cannot keep us from writing
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            for name in ("features", "labels", "test_x", "test_y"):
                arrays[name] = torch.from_numpy(arrays[name])
        return cls(json.loads((folder / "case.json").read_text()), **arrays)

    @property
    def rounds(self) -> int:
        """Rounds in all, warm-up included."""
        return len(self.cohorts)

    @property
    def cohort(self) -> int:
        """Clients per round."""
        return self.cohorts.shape[1]

    @property
    def batch(self) -> int:
        """Samples per local step."""
        return self.about["batch"]

    @property
    def lr(self) -> float:
        """Client step size."""
        return self.about["lr"]

    def client(self, m: int) -> tuple[Tensor, Tensor]:
        """Return all samples of client m, as views."""
        rows = slice(int(self.offsets[m]), int(self.offsets[m + 1]))
        return self.features[rows], self.labels[rows]

    def visit(self, place: int) -> tuple[Tensor, Tensor]:
        """Return the samples of the ``place``-th visit (r cohort + i), shuffled as they are to be used."""
        x, y = self.client(int(self.cohorts.reshape(-1)[place]))
        index = torch.from_numpy(self.order[self.starts[place]:self.starts[place + 1]].astype(np.int64))
        return x.index_select(0, index), y.index_select(0, index)

    def module(self) -> nn.Module:
        """Return the model at its initial weights."""
        model = build(self.about["model"], tuple(self.features.shape[1:]), self.about["classes"])
        torch.nn.utils.vector_to_parameters(torch.from_numpy(self.initial.copy()), model.parameters())
        return model

    def accuracy(self, model: nn.Module) -> float:
        """Return the share of the test samples that the model gets right."""
        model.eval()
        with torch.no_grad():
            hits = sum(int((model(x).argmax(-1) == y).sum())
                       for x, y in zip(self.test_x.split(1000), self.test_y.split(1000), strict=True))
        return hits / len(self.test_y)

    def accuracy_of(self, vector: Tensor | np.ndarray) -> float:
        """Return the accuracy at the weights [P]."""
        model = self.module()
        torch.nn.utils.vector_to_parameters(torch.as_tensor(vector).float(), model.parameters())
        return self.accuracy(model)


def build(spec: Sequence[Any], shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return ["softmax"], ["mlp", width] or ["cnn", channels, hidden] for samples of a shape."""
    kind, *sizes = spec
    inputs = int(np.prod(shape))
    if kind == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, sizes[0]), nn.ReLU(), nn.Linear(sizes[0], classes))
    channels, hidden = sizes
    colours, height, width = shape
    return nn.Sequential(
        nn.Conv2d(colours, channels, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * channels * (height // 4) * (width // 4), hidden), nn.ReLU(),
        nn.Linear(hidden, classes))
