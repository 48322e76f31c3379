"""Which nets the hand-derived oracles can run: the walk over a model's modules.

The order of a module's children is the order of its computation only for ``nn.Sequential``, which is what
the small models here are built from. Whatever else may hide in a ``forward``, a hook, a parametrisation or a
shared weight is never guessed at: the walk then says why the model does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..vectors import trainable
from .pointwise import GELU, IDENTITY, RELU, SIGMOID, TANH, TANH_GELU, Pointwise

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class DoesNotFit(Exception):
    """Why an oracle cannot run a model, in words that end the sentence 'the model does not fit: ...'."""


@dataclass(frozen=True)
class Linear:
    """A linear layer and the activation behind it; ``weight`` and ``bias`` are offsets into the vector [P]."""

    inputs: int
    outputs: int
    weight: int
    bias: int | None
    activation: Pointwise


def dense_chain(model: nn.Module) -> tuple[list[Linear], bool]:
    """Return the linear layers of a model in their order, and whether it flattens its samples first.

    Raises:
        DoesNotFit: if it is anything but [Flatten], then Linear layers with at most one activation each.
    """
    offsets, start = {}, 0
    parameters = trainable(model)
    for _, p in parameters:
        offsets[id(p)] = start
        start += p.numel()
    layers: list[Linear] = []
    flat, open_end = False, False   # open_end: the last layer has no activation yet
    left = set(offsets)
    for name, module in steps(model):
        if type(module) is nn.Linear:
            own = [module.weight] if module.bias is None else [module.weight, module.bias]
            if not all(p.requires_grad for p in own):
                raise DoesNotFit(f"{name} has parameters that are not trained")
            if not left.issuperset(map(id, own)):
                raise DoesNotFit(f"{name} shares parameters with another layer")
            left.difference_update(map(id, own))
            if layers and layers[-1].outputs != module.in_features:
                raise DoesNotFit(f"{name} takes {module.in_features} inputs after {layers[-1].outputs} outputs")
            bias = None if module.bias is None else offsets[id(module.bias)]
            layers.append(Linear(module.in_features, module.out_features, offsets[id(module.weight)], bias, IDENTITY))
            open_end = True
        elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            flat = flat or not layers
        elif type(module) is not nn.Identity:
            activation = pointwise(module)
            if activation is None:
                raise DoesNotFit(f"{name} is a {type(module).__name__}, and only Linear, Flatten, ReLU, Tanh, "
                                 "Sigmoid and GELU in nn.Sequential are known")
            if not open_end:
                raise DoesNotFit(f"{name} ({type(module).__name__}) does not follow a Linear layer")
            last = layers.pop()
            layers.append(Linear(last.inputs, last.outputs, last.weight, last.bias, activation))
            open_end = False
    if not layers:
        raise DoesNotFit("it has no Linear layer")
    if left:
        raise DoesNotFit("it has parameters outside its layers")
    if len({(p.dtype, p.device) for _, p in parameters}) > 1:
        raise DoesNotFit("its parameters have different types or devices")
    return layers, flat


def steps(model: nn.Module, name: str = "the model") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of nested ``nn.Sequential`` in the order of computation.

    Raises:
        DoesNotFit: for hooks, and for a ``forward`` put on an instance.
    """
    if any(getattr(model, hooks) for hooks in HOOKS) or any(p._backward_hooks for p in model.parameters(False)):
        raise DoesNotFit(f"{name} has hooks")
    if "forward" in vars(model):
        raise DoesNotFit(f"{name} has a forward of its own")
    if type(model) is nn.Sequential:
        for child, module in model._modules.items():      # named_children() skips a module that comes twice
            yield from steps(module, child if name == "the model" else f"{name}.{child}")
    else:
        yield name, model


def pointwise(module: nn.Module) -> Pointwise | None:
    """Return the activation that a module is, or None."""
    if type(module) is nn.GELU:
        return TANH_GELU if module.approximate == "tanh" else GELU
    known: dict[type[nn.Module], Pointwise] = {nn.ReLU: RELU, nn.Tanh: TANH, nn.Sigmoid: SIGMOID}
    return known.get(type(module))
