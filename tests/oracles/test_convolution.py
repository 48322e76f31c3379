"""The convolution oracle against autograd, what it is chosen for, and bfloat16 products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles.nets import far, federation, net
from problems import blobs, experiment, play
from torch import nn

from fedlearn import api
from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedprox import FedProx
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.errors import ConfigError
from fedlearn.models.cnn import CNN
from fedlearn.models.resnet import ResNet
from fedlearn.oracles.autograd import Autograd
from fedlearn.oracles.convolution import FEW, Convolution, channels_last, reorder
from fedlearn.policies.local_work import LocalWork
from fedlearn.tasks.least_squares import LeastSquares
from fedlearn.tasks.quadratic import Quadratic
from fedlearn.tasks.supervised import SupervisedTask, cross_entropy

CLOSE = {torch.float64: 1e-12, torch.float32: 1e-6}
CALLS = ("grad", "value", "hvp", "full_grad", "full_value")


def strange() -> nn.Module:
    """Two colours in, no bias, an average, a strided and a padded convolution, a frozen bias, activations."""
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
                          nn.Conv2d(6, 4, 2, stride=2, padding="valid", groups=2), nn.Tanh(), nn.ReLU(),
                          nn.AvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3, bias=False))
    model[7].bias.requires_grad_(False)
    return model


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (lambda: CNN(3, 8).build((1, 8, 8), 3), (1, 8, 8)),
    "colours": (lambda: CNN(2, 4).build((3, 9, 7), 3), (3, 9, 7)),
    "resnet": (lambda: ResNet(4, 1, 2).build((1, 8, 8), 3), (1, 8, 8)),
    "strange": (strange, (2, 6, 6))}


def images(name: str, dtype: torch.dtype = torch.float32, **more: Any) -> SupervisedTask:
    make, shape = SHAPES[name]
    return federation(make(), dtype=dtype, shape=shape, **more)


@pytest.mark.parametrize("loss", ["cross_entropy", cross_entropy])
@pytest.mark.parametrize("name", SHAPES)
def test_every_answer_equals_autograds(name: str, loss: Any) -> None:
    task = images(name, torch.float64, loss=loss)
    plain, ours = task.oracle("autograd"), task.oracle("conv")
    g = torch.Generator().manual_seed(1)
    for client, draw in ((3, [0, 3, 2, 9, 39]), (4, [0]), (3, list(range(40)))):
        x = task.initial(0) + 0.1 * torch.randn(task.x0.shape, generator=g, dtype=torch.float64)
        v, before = torch.randn(x.shape, generator=g, dtype=torch.float64), x.clone()
        for oracle in (plain, ours):
            oracle.enter([client])
            oracle.at([torch.tensor(draw)])
        for call in (*CALLS, "grad"):   # the last: what the others leave behind is not added to a gradient
            answers = [(o.hvp(x, v) if call == "hvp" else getattr(o, call)(x)).clone() for o in (ours, plain)]
            assert far(*answers) < 1e-12, call
        assert far(ours.loss, plain.loss) < 1e-6 and torch.equal(x, before)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [FedAvg(lr=0.1), Scaffold(lr=0.05), Scaffold(lr=0.05, option="I"),
                                       FedProx(lr=0.1, mu=0.5), FedAdam(lr=0.05, server_lr=0.01)],
                         ids=lambda a: f"{type(a).__name__}{getattr(a, 'option', '')}")
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", SHAPES)
def test_whole_runs_equal_those_of_autograd(name: str, dtype: torch.dtype, algorithm: Any) -> None:
    for local in (LocalWork(epochs=2, batch_size=5), LocalWork(steps=3, batch_size=0)):
        x, expected = (play(experiment(algorithm, 4, task=images(name, dtype), local=local, cohort=5, oracle=oracle))[0]
                       for oracle in ("conv", "autograd"))
        assert far(x, expected) < CLOSE[dtype]
        assert far(x, images(name, dtype).initial(0)) > 1e-3


def test_pooling_before_relu_changes_neither_values_nor_gradients_by_a_bit() -> None:
    first, second = nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.ReLU())
    torch.manual_seed(0)
    x = torch.randint(-3, 3, (4, 2, 9, 9)).float()      # full of ties, at zero and elsewhere
    results = []
    for model in (first, second):
        z = x.clone().requires_grad_()
        out = model(z)
        out.backward(torch.arange(out.numel()).view_as(out).float())
        results.append((out, z.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_only_what_is_free_of_effect_is_reordered() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1), nn.Tanh(),
                          nn.MaxPool2d(2), nn.AvgPool2d(1), nn.ReLU(), nn.MaxPool2d(1), nn.Conv2d(2, 2, 1), nn.ReLU(),
                          nn.AvgPool2d(1))
    assert reorder(model) == 1
    assert [type(m).__name__ for m in model] == [
        "Conv2d", "MaxPool2d", "ReLU", "Conv2d", "Tanh", "MaxPool2d", "AvgPool2d", "ReLU", "MaxPool2d", "Conv2d",
        "ReLU", "AvgPool2d"]
    assert [model[i].inplace for i in (2, 7, 10)] == [True, False, True]


def test_the_task_keeps_its_model_and_weights_stay_views_of_the_vector() -> None:
    task = images("cnn")
    oracle = task.oracle()
    assert type(task.model[1]) is nn.ReLU and not task.model[1].inplace and "forward" not in vars(task.model[7])
    oracle.enter([3])
    oracle.at([torch.tensor([1, 2])])
    x = task.initial(0)
    first = oracle.grad(x).clone()
    assert all(p.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for p in oracle.parameters)
    assert oracle.batch[0].stride() == (64, 1, 8, 1)
    unaligned = torch.empty(len(x) + 1)[1:].copy_(x)
    assert torch.equal(oracle.grad(unaligned), first)
    unaligned.mul_(2)
    assert torch.equal(oracle.grad(unaligned).clone(), oracle.grad(2 * x))


def test_channels_last_keeps_the_values() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(channels_last(x), x) and channels_last(x).stride() == (60, 1, 15, 3)
    assert channels_last(x[0]) is not None and channels_last(x[0]).stride() == x[0].stride()


def shared() -> nn.Module:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(layer, layer, nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(("model", "why"), [
    (shared, "1 shares parameters"),
    (lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.Dropout2d(), nn.Flatten(), nn.Linear(36, 3)), "1 is a Dropout2d"),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "no Conv2d")])
def test_what_does_not_fit_is_said_and_left_to_others(model: Callable[[], nn.Module], why: str) -> None:
    task = federation(model(), shape=(1, 8, 8))
    assert not isinstance(task.oracle(), Convolution)
    with pytest.raises(ConfigError, match=f"oracle: found 'conv'; .*{why}") as caught:
        task.oracle("conv")
    assert "\n" not in str(caught.value)


def test_auto_takes_it_for_nets_without_normalisation_and_it_says_what_it_does() -> None:
    chosen = images("cnn").oracle()
    assert isinstance(chosen, Convolution) and "channels_last, 2 pooling before ReLU" in chosen.describe()
    assert type(images("resnet").oracle()) is Autograd
    words = images("cnn").oracle("auto", "bf16").describe()
    assert "bfloat16 with float32 weights" in words and "linear layers of up to 64 samples in float32" in words


@pytest.mark.parametrize("oracle", ["conv", "autograd", "auto"])
def test_bf16_trains_nearly_the_same_model_from_float32_weights(oracle: str) -> None:
    choices: dict[str, Any] = {"task": images("cnn"), "oracle": oracle, "local": LocalWork(epochs=1, batch_size=5)}
    low, exact = (play(experiment(FedAvg(lr=0.05), 3, precision=precision, **choices))[0]
                  for precision in ("bf16", "float32"))
    moved = exact - choices["task"].initial(0)
    assert low.dtype == torch.float32 and not torch.equal(low, exact)
    assert float((low - exact).norm() / moved.norm()) < 0.1


@pytest.mark.parametrize(("samples", "dtype"), [(1, torch.float32), (FEW, torch.float32), (FEW + 1, torch.bfloat16)])
def test_linear_layers_compute_in_bf16_only_for_large_batches_on_a_cpu(samples: int, dtype: torch.dtype) -> None:
    oracle = images("cnn").oracle("conv", "bf16")
    assert isinstance(oracle, Convolution)
    seen: list[torch.dtype] = []
    oracle.model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    oracle.enter([3])
    oracle.at([torch.arange(samples) % 40])
    oracle.grad(images("cnn").initial(0))
    assert seen == [dtype]


def test_where_bf16_gains_nothing_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, said in ((False, True), (True, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"amx_bf16": has}, raising=False)
        assert ("rarely faster" in images("cnn").oracle("auto", "bf16").describe()) == said
        assert "faster" not in images("cnn").oracle().describe()


def test_gradients_in_bf16_are_close_and_their_hessian_too() -> None:
    task = images("strange", loss="cross_entropy")
    x = task.initial(0)
    v = torch.linspace(-1, 1, len(x))
    answers = []
    for precision in ("bf16", "float32"):
        oracle = task.oracle("conv", precision)
        oracle.enter([3])
        oracle.at([torch.arange(20)])
        answers.append([oracle.grad(x).clone(), oracle.hvp(x, v), oracle.full_grad(x), oracle.value(x)])
    for low, exact in zip(*answers, strict=True):
        assert low.dtype == torch.float32
        assert 0 < far(low, exact) < 0.2     # rounding makes ties, and so moves some maxima


@pytest.mark.parametrize(("choices", "words"), [
    ({"task": federation(net(3), dtype=torch.float32), "oracle": "dense"}, "oracle: found 'dense'.*precision=bf16"),
    ({"task": federation(net(3), dtype=torch.float32), "oracle": "vmap"}, "oracle: found 'vmap'.*precision=bf16"),
    ({"task": blobs(dtype=torch.float64)}, "precision: found 'bf16'.*dtype=float64"),
    ({"task": LeastSquares().build(4, 0, torch.float32)}, "precision: found 'bf16'.*float32 with task"),
    ({"task": Quadratic().build(4, 0, torch.float32)}, "precision: found 'bf16'.*float32 with task Quadratic")])
def test_bf16_is_refused_where_it_cannot_be_had(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        play(experiment(FedAvg(), 1, precision="bf16", **choices))
    assert "\n" not in str(caught.value)


def test_precision_is_a_setting_of_the_run_and_part_of_what_it_depends_on() -> None:
    assert experiment(FedAvg(), precision="bf16").identity()["precision"] == "'bf16'"
    with pytest.raises(ConfigError, match="precision: found 'bf17'; allowed: .*bf16, float32"):
        experiment(FedAvg(), precision="bf17")
    histories = [api.run(algorithm=FedAvg(), rounds=1, task=images("cnn"), progress="none", precision=precision)
                 for precision in ("float32", "bf16")]
    assert histories[0].sha256 != histories[1].sha256
