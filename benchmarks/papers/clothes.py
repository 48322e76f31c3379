"""Clothes of Fashion-MNIST for logistic regression: tops against the rest, by pixels pooled to 7 x 7."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fedlearn.tasks.fashion_mnist import FashionMNIST

CLASSES, TOPS = 10, (0, 2, 3, 4, 6)     # T-shirts, pullovers, dresses, coats, shirts
IMAGES = 12_000                         # of them samples are drawn


@cache
def images() -> tuple[Tensor, Tensor]:
    """Return features float64 [n, 50], the last of them 1, and classes [n]."""
    raw = FashionMNIST(samples=IMAGES).load()
    pooled = avg_pool2d(raw.train_x, 4).flatten(1).double()
    return torch.cat([pooled, torch.ones(len(pooled), 1, dtype=torch.float64)], 1), raw.train_y


def draw_clothes(each: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return features [10, each, 50] and labels [10, each], 1 for tops, of as many samples of each class.

    The features are scaled such that the logistic loss over all samples has curvature 1 at 0, where it is largest.
    """
    x, classes = images()
    rows = [rng.choice(np.flatnonzero(classes.numpy() == c), each, replace=False) for c in range(CLASSES)]
    drawn = x[torch.from_numpy(np.concatenate(rows))]
    largest = torch.linalg.eigvalsh(drawn.mT @ drawn / len(drawn))[-1]
    labels = torch.tensor([float(c in TOPS) for c in range(CLASSES)], dtype=torch.float64)
    return (drawn * (4 / largest).sqrt()).view(CLASSES, each, -1), labels[:, None].repeat(1, each)
