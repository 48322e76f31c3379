"""A small residual network with group normalisation.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016 (section 4.2, the three
stages for small images; projection where the shape changes); Wu, He: Group Normalization, ECCV 2018,
in the place of batch normalisation, which fails on non-IID clients (Hsieh, Phanishayee, Mutlu, Gibbons:
The Non-IID Data Quagmire of Decentralized Machine Learning, ICML 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, in_range
from .check import require_shape


@dataclass(frozen=True)
class ResNet:
    """Three stages of ``depth`` residual blocks with width, 2 width and 4 width channels."""

    width: int = 16
    depth: int = 1
    groups: int = 8

    def __post_init__(self) -> None:
        in_range("model.width", self.width, least=1)
        in_range("model.depth", self.depth, least=1)
        in_range("model.groups", self.groups, least=1)
        if self.width % self.groups:
            raise ConfigError("model.groups", self.groups, f"a divisor of model.width={self.width}")

    def build(self, in_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return a module [n, c, h, w] -> logits [n, classes].

        Raises:
            ModelError: if the samples are not images.
        """
        require_shape("resnet", in_shape, len(in_shape) == 3, "images [channels, height, width]")
        layers: list[nn.Module] = [nn.Conv2d(in_shape[0], self.width, 3, padding=1, bias=False),
                                   nn.GroupNorm(self.groups, self.width), nn.ReLU()]
        inputs = self.width
        for stage in range(3):
            for block in range(self.depth):
                outputs = self.width << stage
                layers.append(Block(inputs, outputs, 2 if stage and not block else 1, self.groups))
                inputs = outputs
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Block(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                                      nn.GroupNorm(groups, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))
