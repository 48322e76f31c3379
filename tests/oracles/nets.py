"""Small supervised tasks for the tests of the oracles: unequal clients, partial last batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlearn.tasks.supervised import SupervisedTask

SIZES = (7, 23, 12, 40, 1, 18, 5)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU(approximate="tanh")}
OUTPUTS = {"cross_entropy": 3, "binary_cross_entropy": 1, "squared": 2}


def net(outputs: int, activation: str = "relu", bias: bool = True, inputs: int = 6) -> nn.Module:
    """Two hidden layers; one of the two biases is left out on request."""
    act = ACTIVATIONS[activation]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 5, bias), act(), nn.Sequential(nn.Linear(5, 4), act()),
                         nn.Linear(4, outputs, bias))


def labels(rng: np.random.Generator, loss: Any, n: int, outputs: int) -> np.ndarray:
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, n if outputs == 1 else (n, outputs))
    return rng.standard_normal((n, outputs)) if loss == "squared" else rng.integers(0, outputs, n)


def federation(model: nn.Module, loss: Any = "cross_entropy", outputs: int = 3, dtype: torch.dtype = torch.float64,
               shape: tuple[int, ...] = (6,), sizes: tuple[int, ...] = SIZES, seed: int = 0) -> SupervisedTask:
    """Clients of unequal sizes with Gaussian samples; the first weights of the model are drawn anew."""
    rng = np.random.default_rng(seed)
    clients = [(rng.standard_normal((n, *shape)), labels(rng, loss, n, outputs)) for n in sizes]
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p.shape[-1]))
    real = np.float64 if dtype == torch.float64 else np.float32
    as_type = [(x.astype(real), y.astype(real) if y.dtype == np.float64 else y) for x, y in clients]
    return SupervisedTask(model, loss, as_type, None, dtype)


def far(a: Tensor, b: Tensor) -> float:
    """The distance of a from b, relative to b."""
    return float((a - b).norm() / b.norm())
