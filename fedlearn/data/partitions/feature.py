"""Feature skew: every client sees the same classes through a transformation of its own.

``rotation``: Ghosh, Chung, Yin, Ramchandran: An Efficient Framework for Clustered Federated Learning,
NeurIPS 2020, section 6 (rotated MNIST: 0, 90, 180, 270 degrees; here ``quarter_turns=true``), and with
any fixed angle per client as in Lopez-Paz, Ranzato: Gradient Episodic Memory, NeurIPS 2017.
``noise``: Li, Diao, Chen, He: Federated Learning on Non-IID Data Silos, ICDE 2022, section 4.2: client
m of M adds Gaussian noise of mean 0 and variance  strength * m / M,  m = 1 ... M.

Samples are split IID first. The test set is left as it is: it has no rotation and no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import ConfigError, DataError, in_range, one_of
from ..raw import RawData
from ..store import ClientStore
from .iid import IID

DEFAULTS = {"rotation": 45.0, "noise": 0.1}


@dataclass(frozen=True)
class Feature:
    """A fixed transformation of the features per client, of ``kind`` rotation or noise.

    ``strength``: for rotation the largest angle in degrees, in (0, 180]; client angles are uniform
    between minus and plus it (None: 45). For noise the variance at the last client, in squared units
    of the features as the task scales them (None: 0.1). ``quarter_turns`` draws the angle from 0, 90,
    180 and 270 degrees instead, without interpolation.
    """

    kind: str = "rotation"
    strength: float | None = None
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        if self.kind not in DEFAULTS:
            raise ConfigError("heterogeneity.kind", self.kind, one_of(DEFAULTS, self.kind))
        if self.quarter_turns and self.kind != "rotation":
            raise ConfigError("heterogeneity.quarter_turns", True, f"false with kind={self.kind}",
                              "Only a rotation has quarter turns.")
        if self.quarter_turns and self.strength is not None:
            raise ConfigError("heterogeneity.strength", self.strength, "null with quarter_turns=true",
                              "Quarter turns are drawn from 0, 90, 180 and 270 degrees.")
        if self.strength is not None:
            in_range("heterogeneity.strength", self.strength, above=0,
                     most=180 if self.kind == "rotation" else 1e6)

    def split(self, raw: RawData, clients: int | None, rng: np.random.Generator, least: int) -> ClientStore:
        """Return the clients' data.

        Raises:
            ConfigError: if there are fewer than clients x least samples.
            DataError: if the features are not real numbers, or not images where they are rotated.
        """
        shape = list(raw.train_x.shape[1:])
        if not raw.train_x.is_floating_point():
            raise DataError(f"heterogeneity=feature changes real-valued features; found {raw.train_x.dtype}; "
                            "use another level.")
        if self.kind == "rotation" and len(shape) != 3:
            raise DataError(f"heterogeneity=feature rotates images [channels, height, width]; found features "
                            f"of shape {shape}; use heterogeneity.kind=noise.")
        if self.quarter_turns and shape[1] != shape[2]:
            raise DataError(f"heterogeneity=feature: a quarter turn needs square images; found {shape}; use "
                            "heterogeneity.quarter_turns=false.")
        store = IID().split(raw, clients, rng, least)  # its tensors are ours: changed in place below
        strength = DEFAULTS[self.kind] if self.strength is None else self.strength
        for m in range(len(store)):
            x, _ = store.client(m)
            if self.kind == "noise":
                deviation = math.sqrt(strength * (m + 1) / len(store))
                x += torch.from_numpy(deviation * rng.standard_normal(x.shape)).to(x.dtype)
            elif self.quarter_turns:
                x.copy_(torch.rot90(x, int(rng.integers(4)), dims=(2, 3)))
            else:
                x.copy_(rotate(x, rng.uniform(-strength, strength)))
        return store


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Rotate images [n, channels, height, width] counter-clockwise about their centre.

    Bilinear; what turns in from outside repeats the nearest border pixel, so that the background
    keeps its value whatever the scaling of the images.
    """
    n, _, height, width = x.shape
    a = math.radians(degrees)
    aspect = height / width  # the sampling grid goes from -1 to 1 along both sides
    turn = torch.tensor([[math.cos(a), -math.sin(a) * aspect, 0.0], [math.sin(a) / aspect, math.cos(a), 0.0]],
                        dtype=x.dtype)
    grid = F.affine_grid(turn.expand(n, 2, 3), [n, 1, height, width], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
