"""Which oracle runs a supervised task: the fastest whose result is that of autograd, or the one that is asked for.

``auto`` takes the first of ``AUTO`` that fits the model, the loss and the data. A new oracle is a function here that
returns it or raises ``DoesNotFit`` with the reason, and a place in ``KINDS`` and perhaps in ``AUTO``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..contracts import ClientOracle
from ..errors import ConfigError, one_of
from ..vectors import trainable
from .autograd import Autograd
from .convolution import Convolution, convolutions
from .cuda_graphs import Graphs
from .dense import Dense
from .layers import DoesNotFit, dense_chain
from .minibatch import Batches
from .pointwise import LOSSES
from .vmapped import Vmapped


@dataclass(frozen=True)
class Problem:
    """What an oracle is made for: ``loss`` is a name or a callable, ``criterion`` the loss as a function.

    ``store`` has ``sizes`` and ``batch(client, index)``; ``prepare`` brings features to the model's device and dtype.
    ``precision`` is float32 (the model's own dtype) or bf16 (bfloat16 products from float32 weights).
    """

    model: nn.Module
    loss: str | Callable[[Tensor, Tensor], Tensor]
    criterion: Callable[[Tensor, Tensor], Tensor]
    store: Any
    prepare: Callable[[Tensor], Tensor]
    precision: str = "float32"


def choose(kind: str, problem: Problem) -> ClientOracle:
    """Return a new oracle of a kind; it works on a copy of the model, or on none.

    Raises:
        ConfigError: for an unknown kind, and for one that does not fit, saying why.
    """
    if problem.precision not in PRECISIONS:
        raise ConfigError("precision", problem.precision, one_of(PRECISIONS, problem.precision))
    dtypes = {str(p.dtype).removeprefix("torch.") for _, p in trainable(problem.model)}
    if problem.precision == "bf16" and dtypes != {"float32"}:
        raise ConfigError("precision", "bf16", f"precision=float32 with dtype={'/'.join(sorted(dtypes))}",
                          "bf16 goes with dtype=float32.")
    if kind != "auto" and kind not in KINDS:
        raise ConfigError("oracle", kind, one_of(["auto", *KINDS], kind))
    if kind != "auto":
        try:
            return KINDS[kind](problem)
        except DoesNotFit as why:
            raise ConfigError("oracle", kind, "auto or autograd for this task", f"It does not fit: {why}.") from why
    for make in AUTO:
        try:
            return make(problem)
        except DoesNotFit:
            continue
    raise AssertionError("autograd fits every model")


def autograd(problem: Problem) -> ClientOracle:
    """Return the autograd oracle."""
    return Autograd(deepcopy(problem.model), problem.criterion, problem.store, problem.prepare, problem.precision)


def graphs(problem: Problem) -> ClientOracle:
    """Return the graphs oracle, for models on a CUDA device.

    It is not among ``AUTO``: that a model's Python code does the same at every call cannot be seen from outside.

    Raises:
        DoesNotFit: if the model is elsewhere, or cannot be recorded.
    """
    (device, *_) = {p.device.type for p in problem.model.parameters()}
    if device != "cuda":
        raise DoesNotFit(f"it is on {device}, and CUDA graphs need a CUDA device")
    return Graphs(deepcopy(problem.model), problem.criterion, problem.store, problem.prepare, problem.precision)


def convolution(problem: Problem) -> ClientOracle:
    """Return the convolution oracle for nets of Conv2d and other known layers.

    Raises:
        DoesNotFit: saying what of the model is not so.
    """
    convolutions(problem.model)
    return Convolution(deepcopy(problem.model), problem.criterion, problem.store, problem.prepare, problem.precision)


def dense(problem: Problem) -> ClientOracle:
    """Return the dense oracle for chains of Linear layers with a named loss, in float32 or float64.

    Raises:
        DoesNotFit: saying what of the model, the loss or the data is not so.
    """
    _own_precision(problem)
    layers, flat = dense_chain(problem.model)
    if not isinstance(problem.loss, str):
        raise DoesNotFit("its loss is a function of the user's; " + one_of(LOSSES) + " are known")
    loss = LOSSES[problem.loss](layers[-1].outputs)
    parameters = [p for _, p in trainable(problem.model)]
    dtype, device = parameters[0].dtype, parameters[0].device
    if str(dtype) not in ("torch.float32", "torch.float64") or device.type not in ("cpu", "cuda"):
        raise DoesNotFit(f"it is {dtype} on {device.type}; float32 and float64 on CPU and CUDA are known")
    x, y = problem.store.example() if hasattr(problem.store, "example") else problem.store.batch(0, [0])
    width = math.prod(x.shape[1:]) if flat else x.shape[1] if x.dim() == 2 else None
    if not x.is_floating_point() or width != layers[0].inputs:
        raise DoesNotFit(f"a sample is {x.dtype} {list(x.shape[1:])}, and the first layer takes "
                         f"{layers[0].inputs} real numbers")
    per_sample = y.numel()
    if problem.loss == "cross_entropy" and (y.is_floating_point() or per_sample != 1):
        raise DoesNotFit(f"a label is {y.dtype} {list(y.shape[1:])}, and not one class index")
    if problem.loss != "cross_entropy" and per_sample != loss.units:
        raise DoesNotFit(f"a sample has {per_sample} labels and the net {loss.units} outputs")
    batches = Batches(problem.store, loss, layers[0].inputs, dtype, device)
    return Dense(layers, loss, batches, sum(p.numel() for p in parameters))


def pooled(problem: Problem) -> ClientOracle:
    """Return the convolution oracle where it is the faster one: for nets without normalisation.

    Raises:
        DoesNotFit: if group normalisation, slow in channels_last, eats up what the convolutions gain.
    """
    if any(type(module) is nn.GroupNorm for module in problem.model.modules()):
        raise DoesNotFit("with group normalisation it is no faster than autograd")
    return convolution(problem)


def vmapped(problem: Problem) -> ClientOracle:
    """Return the vmap oracle: it stacks any model that torch.func can differentiate.

    Raises:
        DoesNotFit: if it cannot, with torch's reason.
    """
    _own_precision(problem)
    return Vmapped(deepcopy(problem.model), problem.criterion, problem.store, problem.prepare)


def _own_precision(problem: Problem) -> None:
    if problem.precision != "float32":
        raise DoesNotFit(f"it computes in the model's own dtype, and precision={problem.precision} is asked for")


KINDS: dict[str, Callable[[Problem], ClientOracle]] = {
    "autograd": autograd, "dense": dense, "conv": convolution, "graphs": graphs, "vmap": vmapped}
AUTO = (dense, pooled, autograd)    # the first that fits
PRECISIONS = ("float32", "bf16")
