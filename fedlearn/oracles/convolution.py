"""The convolution oracle: autograd on flat views, with everything around the products made cheap.

What it changes on its copy of the model, none of which changes a result beyond the last bits:

* activations are channels_last: the layout in which convolutions and pooling of small batches are fastest. Weights
  stay what they are, views of the vector (a copy of them in that layout, made at every step, costs more than it saves);
* max pooling comes before the ReLU in [Conv2d, ReLU, MaxPool2d]: max and ReLU commute, and where two entries tie at
  zero neither has a gradient, so values and gradients are exactly equal, on a quarter of the entries;
* a ReLU behind a convolution, a linear layer or a pooling works in place, as none of these needs its output again.

With ``precision`` bf16 on a CPU, linear layers compute in float32 for up to ``FEW`` samples, which is faster there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..models.resnet import Block
from .autograd import Autograd
from .layers import DoesNotFit, steps

FEW = 64    # samples up to which a linear layer on a CPU waits for its weights, so that casting them costs time
LAYERS = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.GroupNorm,
          nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity)
FORGETFUL = (nn.Conv2d, nn.Linear, nn.MaxPool2d)    # their backward pass does not read their output


class Convolution(Autograd):
    """One client at a time; takes over ``model``, an image network that ``convolutions`` accepts.

    Raises:
        DoesNotFit: if the model has a part whose result this might change.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], store: Any,
                 prepare: Callable[[Tensor], Tensor], precision: str = "float32") -> None:
        convolutions(model)
        self.swapped = reorder(model)
        super().__init__(model, loss, store, lambda x: channels_last(prepare(x)), precision)

    def describe(self) -> str:
        """Say what this oracle is, for the run's log."""
        pooling = f", {self.swapped} pooling before ReLU" if self.swapped else ""
        here = self.precision == "bf16" and self.gradient.device.type == "cpu"
        linear = f", linear layers of up to {FEW} samples in float32" if here else ""
        return f"{super().describe()[:-1]}{linear}, channels_last{pooling})"

    def _lowers(self, x: Tensor) -> bool:
        return super()._lowers(x) and (x.device.type != "cpu" or x.numel() > FEW * x.shape[-1])


def channels_last(x: Tensor) -> Tensor:
    """Return images [n, c, h, w] in channels_last memory; anything else as it is.

    The strides say so for one channel too, where torch counts any as channels_last and takes the other layout.
    """
    if x.dim() != 4:
        return x
    _, c, h, w = x.shape
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, (c * h * w, 1, w * c, c))


def convolutions(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a convolutional net.

    Raises:
        DoesNotFit: if it has no Conv2d, or anything but known layers in nested nn.Sequential and residual blocks.
    """
    layers: list[nn.Module] = []
    seen: set[int] = set()
    for name, module in _leaves(model):
        if type(module) not in LAYERS:
            raise DoesNotFit(f"{name} is a {type(module).__name__}, and only Conv2d, Linear, GroupNorm, pooling, "
                             "Flatten, activations and residual blocks in nn.Sequential are known")
        if isinstance(module, nn.MaxPool2d) and module.return_indices:
            raise DoesNotFit(f"{name} returns indices")
        own = [id(p) for p in module.parameters()]
        if seen.intersection(own):
            raise DoesNotFit(f"{name} shares parameters with another layer")
        seen.update(own)
        layers.append(module)
    if not any(type(module) is nn.Conv2d for module in layers):
        raise DoesNotFit("it has no Conv2d layer")
    if len({(p.dtype, p.device) for p in model.parameters()}) > 1:
        raise DoesNotFit("its parameters have different types or devices")
    return layers


def reorder(model: nn.Module) -> int:
    """Pool before, and let ReLU work in place, where it is free of effect; returns how often the first."""
    swapped = 0
    for sequence in (module for module in model.modules() if type(module) is nn.Sequential):
        names = list(sequence._modules)
        for one, two, three in zip(names, names[1:], names[2:], strict=False):
            kinds = tuple(type(sequence._modules[name]) for name in (one, two, three))
            if kinds == (nn.Conv2d, nn.ReLU, nn.MaxPool2d):
                sequence._modules[two], sequence._modules[three] = sequence._modules[three], sequence._modules[two]
                swapped += 1
        for one, two in zip(names, names[1:], strict=False):
            if type(sequence._modules[one]) in FORGETFUL and type(sequence._modules[two]) is nn.ReLU:
                sequence._modules[two] = nn.ReLU(inplace=True)
    return swapped


def _leaves(model: nn.Module, name: str = "the model") -> Iterator[tuple[str, nn.Module]]:
    for step, module in steps(model, name):
        if type(module) is Block:
            for child, part in module.named_children():
                yield from _leaves(part, f"{step}.{child}")
        else:
            yield step, module
