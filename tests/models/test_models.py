"""The reference models: shapes, sizes, second derivatives, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from fedlearn.errors import ConfigError, ModelError
from fedlearn.models.check import check_model
from fedlearn.models.cnn import CNN
from fedlearn.models.gru import GRU
from fedlearn.models.mlp import MLP
from fedlearn.models.resnet import ResNet
from fedlearn.models.softmax import Softmax
from fedlearn.models.transformer import Transformer

IMAGES = [(Softmax(), (1, 8, 8)), (MLP(), (1, 8, 8)), (MLP(16, 3, "tanh"), (64,)), (CNN(4, 8), (1, 8, 8)),
          (CNN(4, 8), (3, 9, 13)), (ResNet(8, 2, 4), (3, 9, 13)), (ResNet(), (1, 8, 8))]
TEXTS = [(GRU(4, 8, 2), (6,)), (Transformer(8, 2, 2), (6,))]


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("config", "shape"), IMAGES, ids=str)
def test_logits_per_sample_that_depend_on_no_other_sample(config, shape):
    torch.manual_seed(0)
    model = config.build(shape, 5).double()
    check_model(model)
    x = torch.rand(3, *shape, dtype=torch.float64)
    assert model(x).shape == (3, 5)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    assert not torch.equal(model(x)[0], model(x)[1])


@pytest.mark.parametrize(("config", "shape"), TEXTS, ids=str)
def test_next_token_logits_see_only_the_past(config, shape):
    torch.manual_seed(0)
    model = config.build(shape, 256).double()
    check_model(model)
    tokens = torch.randint(256, (3, *shape))
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 256
    out, other = model(tokens), model(changed)
    assert out.shape == (3, 6, 256)
    torch.testing.assert_close(out[:, :4], other[:, :4])
    assert ((out - other).abs().amax(dim=(0, 2)) > 1e-9).tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize(("config", "shape"), IMAGES + TEXTS, ids=str)
def test_hessian_vector_products_work(config, shape):
    torch.manual_seed(0)
    model = config.build(shape, 7)
    x = torch.randint(7, (4, *shape)) if (config, shape) in TEXTS else torch.rand(4, *shape)
    parameters = list(model.parameters())
    loss = model(x).logsumexp(-1).mean()
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    product = torch.autograd.grad(sum(g.sum() for g in grads), parameters, allow_unused=True)
    assert all(torch.isfinite(p).all() for p in product if p is not None)
    assert any(p is not None and p.abs().max() > 0 for p in product)


@pytest.mark.parametrize(("config", "shape"), [(CNN(), (1, 28, 28)), (Transformer(), (6,))], ids=str)
def test_weights_come_from_torchs_seed(config, shape):
    torch.manual_seed(3)
    first = config.build(shape, 10)
    torch.manual_seed(3)
    second = config.build(shape, 10)
    third = config.build(shape, 10)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_sizes_are_those_of_the_paper():
    assert size(CNN().build((1, 28, 28), 10)) == 1_663_370  # McMahan et al. 2017
    assert size(MLP(200, 2).build((1, 28, 28), 10)) == 199_210  # their 2NN
    assert size(Softmax().build((1, 28, 28), 10)) == 7_850


@pytest.mark.parametrize(("config", "shape", "found"), [
    (CNN(), (64,), "model=cnn: found samples of shape [64]"),
    (CNN(), (1, 3, 8), "at least 4 x 4 pixels"),
    (ResNet(), (64,), "model=resnet: found samples of shape [64]; allowed: images"),
    (GRU(), (1, 8, 8), "model=gru: found samples of shape [1, 8, 8]; allowed: token sequences"),
    (Transformer(), (1, 8, 8), "model=transformer: found samples of shape [1, 8, 8]"),
], ids=str)
def test_samples_that_do_not_fit_are_refused(config, shape, found):
    with pytest.raises(ModelError, match=re.escape(found)):
        config.build(shape, 10)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MLP(width=0), "model.width: found 0"),
    (lambda: MLP(depth=0), "model.depth: found 0"),
    (lambda: MLP(activation="rely"), "did you mean relu?"),
    (lambda: CNN(channels=0), "model.channels: found 0"),
    (lambda: CNN(hidden=-1), "model.hidden: found -1"),
    (lambda: ResNet(width=12), "model.groups: found 8; allowed: a divisor of model.width=12"),
    (lambda: GRU(embedding=0), "model.embedding: found 0"),
    (lambda: Transformer(width=10, heads=4), "model.heads: found 4; allowed: a divisor of model.width=10"),
])
def test_hyper_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("layer", [
    nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True),
    nn.BatchNorm2d(4, affine=False)], ids=lambda layer: type(layer).__name__)
def test_running_statistics_are_refused_with_path_and_replacement(layer):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(ModelError, match=rf"1\.1 \({type(layer).__name__}\).*GroupNorm"):
        check_model(model)
    with pytest.raises(ModelError, match="the model itself"):
        check_model(layer)


def test_a_running_buffer_of_another_make_is_refused():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.register_buffer("running_mean", torch.zeros(1))

    with pytest.raises(ModelError, match=r"own \(Own\)"):
        check_model(nn.ModuleDict({"own": Own()}))


def test_norms_without_running_statistics_pass():
    check_model(nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm1d(4)))


def test_models_that_have_nothing_to_train_are_refused():
    with pytest.raises(ModelError, match="Flatten has no trainable parameters"):
        check_model(nn.Flatten())
    with pytest.raises(ModelError, match="Linear has no trainable parameters"):
        check_model(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ModelError, match=r"without a shape: weight, bias; .*call the model once"):
        check_model(nn.LazyLinear(2))
