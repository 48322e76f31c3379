"""The CNN of federated averaging.

McMahan, Moore, Ramage, Hampson, Agueera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017, section 3: two 5x5 convolutions (32 and 64 channels), each
followed by 2x2 max pooling, and a fully connected layer of 512 units; 1,663,370 parameters on 28 x 28
grey images.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..errors import in_range
from .check import require_shape


@dataclass(frozen=True)
class CNN:
    """``channels`` of the first convolution (the second has twice as many) and ``hidden`` units."""

    channels: int = 32
    hidden: int = 512

    def __post_init__(self) -> None:
        in_range("model.channels", self.channels, least=1)
        in_range("model.hidden", self.hidden, least=1)

    def build(self, in_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return a module [n, c, h, w] -> logits [n, classes].

        Raises:
            ModelError: if the samples are not images of at least 4 x 4 pixels.
        """
        require_shape("cnn", in_shape, len(in_shape) == 3 and min(in_shape[1:]) >= 4,
                      "images [channels, height, width] of at least 4 x 4 pixels")
        colours, height, width = in_shape
        first, second = self.channels, 2 * self.channels
        return nn.Sequential(
            nn.Conv2d(colours, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(second * (height // 4) * (width // 4), self.hidden), nn.ReLU(),
            nn.Linear(self.hidden, classes))
