"""Local SGDM, Local Adam, their minibatch counterparts and DiLoCo: by hand, by numpy, and what they equal exactly."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import blobs, experiment, play
from rows import momentum
from torch import Tensor
from toy import Federation, Quadratic

from fedlearn.algorithms.diloco import DiLoCo
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.local_adam import LocalAdam
from fedlearn.algorithms.local_sgdm import LocalSGDM, clipped
from fedlearn.algorithms.minibatch_adam import MinibatchAdam
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.minibatch_sgdm import MinibatchSGDM
from fedlearn.contracts import ServerAlgorithm
from fedlearn.errors import ConfigError
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.schedule import InverseTime
from fedlearn.vectors import norm

CLIENTS, SIZE, STEPS, ROUNDS = 5, 6, 4, 3
WEIGHTS = np.array([1.0, 4.0, 2.0, 2.0, 1.0]) / 10


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def problem() -> Quadratic:
    g = torch.Generator().manual_seed(17)
    a = 0.2 + torch.rand(CLIENTS, SIZE, generator=g, dtype=torch.float64)
    t = torch.randn(CLIENTS, SIZE, generator=g, dtype=torch.float64)
    noise = torch.randn(STEPS, CLIENTS, SIZE, generator=g, dtype=torch.float64)
    return Quadratic(a, t, noise)


def models(algorithm: ServerAlgorithm, factor: float = 1.0) -> list[np.ndarray]:
    """Return the models after each round."""
    run = Federation(algorithm, problem(), torch.zeros(SIZE, dtype=torch.float64))
    return [run.round(STEPS, list(WEIGHTS), factor=factor).numpy() for _ in range(ROUNDS)]


def two(algorithm: ServerAlgorithm) -> Federation:
    """Clients with the gradients y - 1 and 3 y + 3."""
    return Federation(algorithm, Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None]), vec(0))


# By hand.

def test_local_sgdm_by_hand() -> None:
    # beta_1 = 1/2, rho = 2, eta = 0.1.  Gradients are clipped to [-2, 2].
    #   client 1: g = -1:    u = -0.5,    x = 0.05;    g = -0.95: u = -0.725,  x = 0.1225
    #   client 2: g = 3 -> 2: u = 1,      x = -0.1;    g = 2.7 -> 2: u = 1.5,  x = -0.25
    run = two(LocalSGDM(lr=0.1, beta1=0.5, rho=2.0))
    assert run.round(2).item() == pytest.approx((0.1225 - 0.25) / 2, rel=1e-13)
    assert run.s.u.item() == pytest.approx((-0.725 + 1.5) / 2, rel=1e-13)
    # The next round starts from both means: client 1 at g = -0.06375 - 1.
    u = [0.5 * 0.3875 + 0.5 * -1.06375, 0.5 * 0.3875 + 0.5 * 2]
    assert run.round(1).item() == pytest.approx(-0.06375 - 0.1 * sum(u) / 2, rel=1e-13)


def test_local_adam_by_hand() -> None:
    # beta_1 = beta_2 = 1/2, lambda^2 = 0.5: one step each. u = -0.5, v = 0.5 and u = 1.5, v = 4.5.
    run = two(LocalAdam(lr=0.1, beta1=0.5, beta2=0.5, lam=0.5**0.5))
    x = [0.1 * 0.5 / 1.0, -0.1 * 1.5 / 5**0.5]
    assert run.round(1).item() == pytest.approx(sum(x) / 2, rel=1e-13)
    assert [run.s.u.item(), run.s.v.item()] == pytest.approx([0.5, 2.5], rel=1e-13)


def test_minibatch_counterparts_by_hand() -> None:
    # The mean gradient at 0 is 1, clipped to 0.8, whatever K: u = 0.4, v = 0.32.
    run = two(MinibatchSGDM(lr=0.1, beta1=0.5, rho=0.8))
    assert run.round([2, 5]).item() == pytest.approx(-0.04, rel=1e-13)
    run = two(MinibatchAdam(lr=0.1, beta1=0.5, beta2=0.5, rho=0.8, lam=0.2))
    assert run.round(3).item() == pytest.approx(-0.1 * 0.4 / 0.36**0.5, rel=1e-13)
    assert [run.s.u.item(), run.s.v.item()] == pytest.approx([0.4, 0.32], rel=1e-13)


def test_diloco_by_hand() -> None:
    # A first step of AdamW, with its bias correction, is -eta sign(g): 0.1 and -0.1.
    # With weights 3 and 1, Delta = 0.05.
    run = two(DiLoCo(lr=0.1, server_lr=0.5, momentum=0.4, weight_decay=0.0, eps=1e-300))
    assert run.round(1, weights=[3, 1]).item() == pytest.approx(0.5 * (0.05 + 0.4 * 0.05), rel=1e-13)
    assert [run.s.b.item(), *(c.t.item() for c in run.states)] == pytest.approx([0.05, 1, 1], rel=1e-13)
    assert [c.m.item() for c in run.states] == pytest.approx([-0.1, 0.3], rel=1e-13)


def test_clipping_by_coordinates_or_by_norm() -> None:
    g = vec(3, -4, 0, 0)
    assert clipped(g, None, "norm") is g
    assert clipped(g, 2, "coordinates").tolist() == [2, -2, 0, 0]
    # rho sqrt(4) = 2: the norm 5 becomes 2.
    torch.testing.assert_close(clipped(g, 1, "norm"), g * 0.4, rtol=1e-15, atol=0)
    assert torch.equal(clipped(g, 2.5, "norm"), g)
    rows = clipped(torch.stack([g, g / 10]), 1, "norm")
    assert norm(rows).flatten().tolist() == pytest.approx([2, 0.5]) and clipped(vec(0, 0), 1, "norm").tolist() == [0, 0]


# The published equations in numpy, on all clients at once.

def gradients() -> Any:
    p = problem()
    a, t, noise = p.a.numpy(), p.t.numpy(), p.noise.numpy()
    return lambda x, k: a * (x - t) + noise[k]


def cheng_glasgow(beta1: float, beta2: float | None, lam: float, eta: float, rho: float) -> list[np.ndarray]:
    """Algorithms 1 and 2; ``beta2`` None is Local SGDM."""
    g, out = gradients(), []
    x, u, v = np.zeros((3, CLIENTS, SIZE))
    for _ in range(ROUNDS):
        for k in range(STEPS):
            clip = g(x, k)
            clip = np.sign(clip) * np.minimum(np.abs(clip), rho)
            u = beta1 * u + (1 - beta1) * clip
            if beta2 is None:
                x = x - eta * u
            else:
                v = beta2 * v + (1 - beta2) * clip * clip
                x = x - eta * u / np.sqrt(v + lam**2)
        x, u, v = (np.tile(WEIGHTS @ part, (CLIENTS, 1)) for part in (x, u, v))
        out.append(x[0])
    return out


def minibatch(beta1: float, beta2: float | None, lam: float, eta: float, rho: float) -> list[np.ndarray]:
    g, out = gradients(), []
    x, u, v = np.zeros((3, SIZE))
    for _ in range(ROUNDS):
        mean = WEIGHTS @ np.mean([g(x, k) for k in range(STEPS)], axis=0)
        clip = np.sign(mean) * np.minimum(np.abs(mean), rho)
        u = beta1 * u + (1 - beta1) * clip
        if beta2 is None:
            x = x - eta * u
        else:
            v = beta2 * v + (1 - beta2) * clip**2
            x = x - eta * u / np.sqrt(v + lam**2)
        out.append(x)
    return out


@pytest.mark.parametrize(("algorithm", "expected"), [
    (LocalSGDM(lr=0.2, beta1=0.7, rho=0.6), cheng_glasgow(0.7, None, 1, 0.2, 0.6)),
    (LocalAdam(lr=0.2, beta1=0.7, beta2=0.8, lam=0.3, rho=0.6), cheng_glasgow(0.7, 0.8, 0.3, 0.2, 0.6)),
    (LocalAdam(lr=0.2, beta1=0.7, beta2=0.8, lam=0.3), cheng_glasgow(0.7, 0.8, 0.3, 0.2, 1e9)),
    (MinibatchSGDM(lr=0.2, beta1=0.7, rho=0.3), minibatch(0.7, None, 1, 0.2, 0.3)),
    (MinibatchAdam(lr=0.2, beta1=0.7, beta2=0.8, lam=0.3, rho=0.3), minibatch(0.7, 0.8, 0.3, 0.2, 0.3)),
], ids=lambda v: type(v).__name__ if isinstance(v, ServerAlgorithm) else "")
def test_the_published_equations(algorithm: ServerAlgorithm, expected: list[np.ndarray]) -> None:
    np.testing.assert_allclose(models(algorithm), expected, rtol=1e-12, atol=1e-13)


def test_diloco_is_adamw_inside_and_nesterov_outside_as_torch_has_them() -> None:
    algorithm = DiLoCo(lr=0.03, server_lr=0.6, momentum=0.8, beta1=0.85, beta2=0.9, weight_decay=0.2, eps=1e-3)
    g, expected = gradients(), []
    x = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.SGD([x], lr=0.6, momentum=0.8, nesterov=True)
    ys = [torch.zeros(SIZE, dtype=torch.float64, requires_grad=True) for _ in range(CLIENTS)]
    inner = [torch.optim.AdamW([y], lr=0.03, betas=(0.85, 0.9), eps=1e-3, weight_decay=0.2) for y in ys]
    for _ in range(ROUNDS):
        for m, (y, adamw) in enumerate(zip(ys, inner, strict=True)):
            y.data.copy_(x.data)
            for k in range(STEPS):
                y.grad = torch.from_numpy(g(y.detach().numpy(), k)[m])
                adamw.step()
        x.grad = x.detach() - sum(w * y.detach() for w, y in zip(WEIGHTS, ys, strict=True))
        outer.step()
        expected.append(x.detach().clone().numpy())
    np.testing.assert_allclose(models(algorithm), expected, rtol=1e-12, atol=1e-13)


# Exact relations.

def test_local_adam_with_a_fixed_denominator_is_local_sgdm() -> None:
    adam, sgdm = models(LocalAdam(lr=0.2, beta2=1, lam=1, rho=0.6)), models(LocalSGDM(lr=0.2, rho=0.6))
    np.testing.assert_allclose(adam, sgdm, rtol=1e-15, atol=1e-15)


def test_local_sgdm_without_momentum_is_local_sgd() -> None:
    np.testing.assert_allclose(models(LocalSGDM(lr=0.2, beta1=0)), models(FedAvg(lr=0.2)), rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(models(LocalSGDM(lr=0.2, beta1=0, server_lr=1.7)),
                               models(FedAvg(lr=0.2, server_lr=1.7)), rtol=1e-15, atol=1e-15)
    g, x = gradients(), np.zeros(SIZE)
    for found in models(LocalSGDM(lr=0.2, beta1=0, rho=0.5)):
        y = np.tile(x, (CLIENTS, 1))
        for k in range(STEPS):
            y = y - 0.2 * np.clip(g(y, k), -0.5, 0.5)
        x = WEIGHTS @ y
        np.testing.assert_allclose(found, x, rtol=1e-14, atol=1e-15)


def test_minibatch_relations() -> None:
    adam = models(MinibatchAdam(lr=0.2, beta2=1, lam=1, rho=0.4))
    np.testing.assert_allclose(adam, models(MinibatchSGDM(lr=0.2, rho=0.4)), rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(models(MinibatchSGDM(lr=0.2, beta1=0)), models(MinibatchSGD(lr=0.2)), rtol=1e-14)
    # With one step, no clipping and one client it does not matter where the step is taken.
    alone = Quadratic(vec(0.5, 2)[None], vec(1, -1)[None])
    for local, central in ((LocalSGDM(), MinibatchSGDM()), (LocalAdam(lam=0.1), MinibatchAdam(lam=0.1))):
        one, other = (Federation(a, alone, vec(0, 0)) for a in (local, central))
        for _ in range(4):
            torch.testing.assert_close(one.round(1), other.round(1), rtol=1e-14, atol=1e-15)


def test_a_second_moment_does_not_fall_below_zero_by_rounding() -> None:
    algorithm = LocalAdam()
    s = algorithm.server_init(vec(0, 0))._replace(v=vec(1e-13, 1))
    b = dict.fromkeys(("dx", "du"), vec(0, 0)) | {"dv": vec(-4e-13, -0.5)}
    assert algorithm.server_update(s, b, _info()).v.tolist() == [0, 0.5]


def _info() -> Any:
    from fedlearn.contracts import RoundInfo
    return RoundInfo(0, 1, CLIENTS, CLIENTS)


# In real runs.

def test_a_schedule_scales_the_step_of_the_minibatch_methods() -> None:
    """Halved after a round, the second step is half as long, from where the first ended."""
    for algorithm in (MinibatchSGDM(lr=0.1, rho=0.5), MinibatchAdam(lr=0.1)):
        half, full = (play(experiment(algorithm, 2, schedule=s, local=LocalWork(steps=2)))[0]
                      for s in (InverseTime(half=1), InverseTime(half=1e9)))
        first = play(experiment(algorithm, 2, local=LocalWork(steps=2)), last=1)[0]
        torch.testing.assert_close(half - first, (full - first) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row", momentum.ROWS, ids=lambda row: type(row.algorithm).__name__ + row.label)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_clients_alone_and_stacked_agree_in_a_run(row: Any, dtype: torch.dtype, rtol: float) -> None:
    local = LocalWork(epochs=1, batch_size=5)
    alone, stacked = (play(experiment(row.algorithm, 3, task=blobs(dtype=dtype), local=local, stack=stack,
                                      oracle="vmap" if stack else "auto"))[0] for stack in (False, True))
    assert (alone - stacked).norm() <= rtol * alone.norm()
    assert torch.isfinite(alone).all() and (alone - blobs(dtype=dtype).initial(0)).norm() > 1e-3


# Bad input.

@pytest.mark.parametrize("algorithm", [LocalSGDM, LocalAdam, MinibatchSGDM, MinibatchAdam])
def test_clipping_is_checked(algorithm: type) -> None:
    for key, wrong in (("rho", 0.0), ("rho", -1.0), ("clip", "entries")):
        with pytest.raises(ConfigError) as error:
            algorithm(**{key: wrong})
        assert error.value.key == f"algorithm.{key}"


def test_every_field_matters() -> None:
    """No hyper-parameter is without effect."""
    others = {"lr": 0.11, "server_lr": 1.3, "beta1": 0.6, "beta2": 0.7, "lam": 0.5, "rho": 0.2, "momentum": 0.3,
              "weight_decay": 0.4, "eps": 0.1}
    for algorithm in (LocalSGDM(rho=0.5), LocalAdam(lr=0.1, rho=0.5), MinibatchSGDM(rho=0.5),
                      MinibatchAdam(lr=0.1, rho=0.5), DiLoCo(lr=0.1)):
        base = models(algorithm)[-1]
        for f in fields(algorithm):
            changed = replace(algorithm, **{f.name: "norm" if f.name == "clip" else others[f.name]})
            assert np.abs(models(changed)[-1] - base).max() > 1e-4, (algorithm, f.name)


def test_a_norm_is_not_taken_of_a_piece_of_the_gradient() -> None:
    for minibatch in (MinibatchSGDM, MinibatchAdam):
        assert minibatch(rho=1.0).coordinatewise and not minibatch(rho=1.0, clip="norm").coordinatewise
