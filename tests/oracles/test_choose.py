"""Which oracle is chosen, what is refused and with which words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles.nets import federation, net
from problems import experiment, play
from torch import nn
from torch.nn.utils import parametrizations

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.errors import ConfigError
from fedlearn.models.cnn import CNN
from fedlearn.models.mlp import MLP
from fedlearn.models.softmax import Softmax
from fedlearn.oracles.autograd import Autograd
from fedlearn.oracles.dense import Dense
from fedlearn.oracles.vmapped import Vmapped
from fedlearn.tasks.supervised import SupervisedTask, cross_entropy


class Twice(nn.Module):
    """Its children look like a chain; its forward is none."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(x + self.one(self.one(x)))


class Scaled(nn.Linear):
    """A Linear layer that is not quite one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Custom(nn.Sequential):
    """A Sequential that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).square()


def hooked() -> nn.Module:
    model = net(3)
    model[1].register_forward_hook(lambda module, args, out: out + 1)
    return model


def frozen() -> nn.Module:
    model = net(3)
    model[1].bias.requires_grad_(False)
    return model


def tied() -> nn.Module:
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    two.weight = one.weight
    return nn.Sequential(one, nn.ReLU(), two)


def tensor_hook() -> nn.Module:
    model = net(3)
    model[1].weight.register_hook(lambda g: 2 * g)
    return model


def patched() -> nn.Module:
    model = net(3)
    model[2].forward = lambda x: x
    return model


def extra() -> nn.Module:
    model = net(3)
    model.register_parameter("temperature", nn.Parameter(torch.ones(3)))
    return model


def same_layer_twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer)


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own forward": (Twice, "Twice"),
    "a Linear of its own": (lambda: nn.Sequential(Scaled(6, 3)), "0 is a Scaled"),
    "a Sequential of its own": (lambda: Custom(nn.Linear(6, 3)), "Custom"),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Linear(4, 3)), "1 is a Dropout"),
    "normalisation": (lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)), "LayerNorm"),
    "hook": (hooked, "1 has hooks"),
    "hook on a tensor": (tensor_hook, "1 has hooks"),
    "patched": (patched, "2 has a forward of its own"),
    "frozen": (frozen, "1 has parameters that are not trained"),
    "tied": (tied, "2 shares parameters"),
    "twice": (same_layer_twice, "2 shares parameters"),
    "extra": (extra, "parameters outside its layers"),
    "parametrised": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 3))), "ParametrizedLinear"),
    "two activations": (lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Tanh()), "does not follow a Linear"),
    "activation first": (lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 3)), "does not follow a Linear"),
    "other activation": (lambda: nn.Sequential(nn.Linear(6, 3), nn.ELU()), "1 is a ELU"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_does_not_fit_is_left_to_autograd_and_never_guessed_at(case: str) -> None:
    make, why = UNFIT[case]
    outputs = 6 if case in ("tied", "twice") else 3
    task = federation(make(), outputs=outputs)
    assert isinstance(task.oracle(), Autograd)
    with pytest.raises(ConfigError, match=f"oracle: found 'dense'; allowed: auto or autograd .*{why}") as caught:
        task.oracle("dense")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "why"), [
    ({"loss": cross_entropy}, "its loss is a function"),
    ({"loss": "squared", "outputs": 2}, "a sample has 2 labels and the net 3 outputs"),
    ({"shape": (2, 3), "model": nn.Linear(3, 3)}, r"a sample is torch.float64 \[2, 3\], and the first layer takes 3"),
    ({"dtype": torch.bfloat16}, "it is torch.bfloat16"),
])
def test_a_loss_or_data_that_does_not_fit(change: dict, why: str) -> None:
    task = federation(**{"model": net(3), **change})
    assert isinstance(task.oracle(), Autograd)
    with pytest.raises(ConfigError, match=why):
        task.oracle("dense")


def test_token_features_are_left_to_autograd() -> None:
    clients = [(torch.zeros(4, 6, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))] * 2
    assert isinstance(SupervisedTask(net(3), "cross_entropy", clients).oracle(), Autograd)


@pytest.mark.parametrize(("model", "words"), [
    (Softmax().build((6,), 3), "dense (hand-derived, 6-3)"), (MLP(8, 2, "gelu").build((6,), 3), "6-8-8-3"),
    (MLP(5, 1, "sigmoid").build((6,), 3), "6-5-3"), (nn.Linear(6, 3), "6-3"),
    (nn.Sequential(nn.Linear(6, 3, bias=False), nn.Identity(), nn.Tanh()), "6-3")])
def test_chains_of_linear_layers_are_taken(model: nn.Module, words: str) -> None:
    for dtype in (torch.float32, torch.float64):
        oracle = federation(model, dtype=dtype).oracle()
        assert isinstance(oracle, Dense) and words in oracle.describe()


def test_other_kinds_say_what_they_are_and_unknown_ones_are_refused() -> None:
    task = federation(net(3))
    assert task.oracle("autograd").describe() == "autograd (Sequential, 74 parameters)"
    assert "vmap" in task.oracle("vmap").describe()
    with pytest.raises(ConfigError, match="oracle: found 'dence'; allowed: .*did you mean dense"):
        task.oracle("dence")


def test_a_stack_takes_vmap_where_nothing_better_stacks() -> None:
    image = CNN(2, 4).build((1, 8, 8), 3)
    task = federation(image, dtype=torch.float32, shape=(1, 8, 8))
    assert not isinstance(task.oracle(), Dense | Vmapped)
    stacked, _ = play(experiment(FedAvg(lr=0.1), 2, task=task, stack=True))
    alone, _ = play(experiment(FedAvg(lr=0.1), 2, task=task, oracle="autograd"))
    assert float((stacked - alone).norm() / alone.norm()) < 1e-6
    with pytest.raises(ConfigError, match="vmap.*dropout"):
        dropped = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
        play(experiment(FedAvg(), 1, task=federation(dropped), stack=True))
