"""What a network makes of a sample before its last layer, for objectives that compare it between models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from .layers import DoesNotFit


def last_linear(model: nn.Module) -> nn.Linear:
    """Return the last layer of a model, in the order of registration; its input is the representation.

    Raises:
        DoesNotFit: if it is not a Linear layer, or nothing before it is trained.
    """
    layers = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    if not any(p.requires_grad for module in layers[:-1] for p in module.parameters(recurse=False)):
        raise DoesNotFit("it has no trained layer before its last one")
    if not isinstance(layers[-1], nn.Linear):
        raise DoesNotFit(f"its last layer is a {type(layers[-1]).__name__}, not Linear")
    return layers[-1]


@contextmanager
def inputs(layer: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect what a layer is given from now on, one tensor a call."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()


def each_once(seen: list[Tensor], models: int) -> list[Tensor]:
    """Return the inputs that so many models gave their last layer.

    Raises:
        ModelError: if they did not call it once each.
    """
    if len(seen) != models:
        raise ModelError(f"the model's last Linear layer: found {len(seen) / models:g} calls in a forward pass; "
                         "allowed: 1; register the layer that makes the output last.")
    return seen


def representing(task: Any, algorithm: str, kind: str, low: dict[str, str]) -> Any:
    """Return the autograd oracle of a task, for an algorithm that compares representations.

    Raises:
        ConfigError: if the task has no network, or none with a representation, or another oracle is asked for.
    """
    if kind not in ("auto", "autograd"):
        raise ConfigError("oracle", kind, f"auto or autograd with algorithm {algorithm}",
                          "It differentiates an objective of its own.")
    need = f"a task whose model has layers before a last Linear one, as algorithm {algorithm} compares their output"
    try:
        oracle = task.oracle("autograd", **low)
    except ConfigError as error:
        if error.key != "oracle":
            raise
        raise ConfigError("task", type(task).__name__, need, "It has no network.") from error
    try:
        last_linear(oracle.model)
    except DoesNotFit as why:
        raise ConfigError("model", type(oracle.model).__name__, need, f"It does not fit: {why}.") from why
    return oracle
