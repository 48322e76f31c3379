"""FedSN-Lite and FedSN: rounds by hand, against plain numpy, and models that have no second derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import blobs, experiment, play
from torch import Tensor, nn
from toy import Federation, Quadratic

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedsn import FedSN
from fedlearn.algorithms.fedsn_lite import FedSNLite
from fedlearn.contracts import RoundInfo
from fedlearn.errors import ConfigError
from fedlearn.modifiers.averaging import Averaging
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.running.execute import execute
from fedlearn.seeds import generator
from fedlearn.tasks.logistic import Logistic
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.vectors import tree_flat, tree_map

WORK = LocalWork(steps=5, batch_size=4)
TASK = Logistic(dimension=4, samples_per_client=12, size_exponent=1.0, test_samples=0).build(3, 2, torch.float64)


def vec(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two(algorithm: Any) -> Federation:
    """Two 1-D quadratics: gradients y - 1 and 3 y + 3."""
    return Federation(algorithm, Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None]), vec(0))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def data(m: int) -> tuple[np.ndarray, np.ndarray]:
    a, y = TASK.store.client(m)
    return a.numpy(), y.numpy()


def value(m: int, x: np.ndarray) -> float:
    a, y = data(m)
    return float(np.mean(np.log1p(np.exp(a @ x)) - y * (a @ x)) + TASK.l2 / 2 * x @ x)


def newton(m: int, x: np.ndarray, r: int, eta: float, tail: bool, lam: float = 0.0) -> np.ndarray:
    """D of client m: SGD on the second-order model at x, as the paper has it for logistic regression."""
    a, y = data(m)
    d, ds = np.zeros_like(x), []
    for index in TASK.draws(m, generator(0, "local", r, m), WORK):
        A, b = a[index.numpy()], y[index.numpy()]
        p = sigmoid(A @ x)
        h = (A.T * (p * (1 - p))) @ (A @ d) / len(b)
        d = d - eta * (A.T @ (p - b) / len(b) + TASK.l2 * x + h + TASK.l2 * d + lam * d)
        ds.append(d)
    return np.mean(ds[len(ds) // 2:], 0) if tail else d


@pytest.mark.parametrize("tail", [False, True])
def test_fedsn_lite_is_the_papers_on_logistic_regression(tail: bool) -> None:
    x = np.zeros(4)
    for r in range(4):
        x = x + 0.8 * np.mean([newton(m, x, r, 0.3, tail) for m in range(3)], 0)
    ours, _ = play(experiment(FedSNLite(lr=0.3, server_lr=0.8, tail=tail), 4, task=TASK, local=WORK,
                              weighting=UniformWeighting()))
    np.testing.assert_allclose(ours.numpy(), x, rtol=0, atol=1e-12)


def test_fedsn_searches_the_multiplier_as_the_paper_says() -> None:
    eta, beta, radius, lam0, growth = 0.5, 40.0, 0.3, 0.05, 3.0     # beta too large: some trials fail
    x = kept = np.zeros(4)
    best, lam, trial, seen = np.inf, 0.0, False, []
    for r in range(14):
        d = np.mean([newton(m, x, r, eta, False, lam) for m in range(3)], 0)
        f = float(np.mean([value(m, x) for m in range(3)]))
        if trial and f > best:
            x, lam, radius, trial = kept, 0.0, radius / 2, False
            seen.append("back")
            continue
        kept, best = x, f
        if np.linalg.norm(d) <= radius:
            x, lam, trial = x + beta * d, 0.0, True
            seen.append("step")
        else:
            lam, trial = growth * lam or lam0, False
            seen.append("probe")
    assert set(seen) == {"back", "step", "probe"}
    algorithm = FedSN(lr=eta, server_lr=beta, radius=0.3, multiplier=lam0, growth=growth)
    ours, reports = play(experiment(algorithm, 14, task=TASK, local=WORK, weighting=UniformWeighting()))
    np.testing.assert_allclose(ours.numpy(), kept, rtol=0, atol=1e-11)
    assert reports[-1].extra == pytest.approx({"multiplier": lam, "radius": radius}, rel=1e-12)


def test_fedsn_lite_by_hand() -> None:
    # From x = 0, as F is quadratic: 0, 0.1, 0.19 and 0, -0.3, -0.51.
    assert two(FedSNLite(lr=0.1)).round(2).item() == pytest.approx(-0.16, rel=1e-14)
    assert two(FedSNLite(lr=0.1, server_lr=0.5)).round(2).item() == pytest.approx(-0.08, rel=1e-14)
    # K = 3: the last half is of steps 2 and 3: (0.19 + 0.271) / 2 and (-0.51 - 0.657) / 2.
    assert two(FedSNLite(lr=0.1, tail=True)).round(3).item() == pytest.approx((0.461 - 1.167) / 4, rel=1e-14)


def test_fedsn_by_hand() -> None:
    run = two(FedSN(lr=0.1, radius=0.15, multiplier=1.0, growth=2.0))
    # D = -0.16 is too long; with lambda = 1 it is 0.1, 0.18 and -0.3, -0.48: -0.15, just within.
    assert run.round(2).item() == 0 and run.s.multiplier.item() == 1 and run.s.trial.item() == 0
    run.s = run.s._replace(radius=vec(0.150001))
    assert run.round(2).item() == 0 and run.s.x.item() == pytest.approx(-0.15, rel=1e-13)
    assert run.s.value.item() == pytest.approx((0.5 + 1.5) / 2, rel=1e-14)
    # F(-0.15) = (1.15^2 / 2 + 3 * 0.85^2 / 2) / 2 < 1: the step counts.
    assert run.round(2).item() == pytest.approx(-0.15, rel=1e-13)
    assert run.algorithm.metrics(run.s)["radius"] == 0.150001


@pytest.mark.parametrize("tail", [False, True])
def test_one_round_on_a_quadratic_is_one_shot_averaged_sgd(tail: bool) -> None:
    g = torch.Generator().manual_seed(1)
    a, t = (torch.rand(6, 5, generator=g, dtype=torch.float64) for _ in range(2))
    noise = torch.randn(8, 6, 5, generator=g, dtype=torch.float64)
    ours = Federation(FedSNLite(lr=0.4, tail=tail), Quadratic(a, t, noise), torch.ones(5, dtype=torch.float64))
    averaging = Averaging(over="steps").around(FedAvg(lr=0.4))
    other = Federation(FedAvg(lr=0.4), Quadratic(a, t, noise), torch.ones(5, dtype=torch.float64))
    if tail:    # one step has no first half: it is the average of all local iterates
        ours, other = (Federation(algorithm, Quadratic(a, t, noise[:1]), torch.ones(5, dtype=torch.float64))
                       for algorithm in (FedSNLite(lr=0.4, tail=True), averaging))
    steps = 1 if tail else 8
    torch.testing.assert_close(ours.round(steps), other.round(steps), rtol=1e-15, atol=2e-15)


def test_without_a_binding_radius_fedsn_steps_as_fedsn_lite() -> None:
    lite, full = (Federation(algorithm, Quadratic(vec(1, 3)[:, None], vec(1, -1)[:, None]), vec(0))
                  for algorithm in (FedSNLite(lr=0.1), FedSN(lr=0.1, radius=10)))
    first = lite.round(3)
    full.round(3)
    assert torch.equal(full.s.x, first) and full.round(3).item() == first.item()
    assert torch.equal(full.s.x, lite.round(3))


def test_fedsn_server_is_pure_and_its_factor_multiplies_the_step() -> None:
    algorithm = FedSN(lr=0.1, radius=3.0)
    s = algorithm.server_init(vec(1, 2))
    for trial, v in ((0.0, 5.0), (1.0, 5.0), (1.0, 3.0)):
        s = s._replace(trial=vec(trial), value=vec(4.0), kept=vec(0, 0))
        mean = {"dx": vec(0.5, -1), "value": vec(v)}
        before = tree_map(torch.clone, (s, mean))
        ends = [algorithm.server_update(s, mean, RoundInfo(0, 9, 2, 2, f)) for f in (1.0, 1.0, 0.5)]
        assert all(torch.equal(a, b) for a, b in zip(tree_flat((s, mean)).values(), tree_flat(before).values(),
                                                     strict=True))
        assert all(torch.equal(a, b) for a, b in zip(ends[0], ends[1], strict=True))
        if trial and v > 4:
            assert ends[0].x.tolist() == [0, 0] and ends[0].radius.item() == 1.5
        else:
            assert ends[0].x.tolist() == [1.5, 1] and ends[2].x.tolist() == [1.25, 1.5]


def test_a_value_that_is_not_a_number_ends_the_trial() -> None:
    algorithm = FedSN(radius=3.0)
    s = algorithm.server_init(vec(1))._replace(trial=vec(1), value=vec(2), kept=vec(7))
    assert algorithm.server_update(s, {"dx": vec(0), "value": vec(np.nan)}, RoundInfo(0, 1, 1, 1)).x.item() == 7


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("algorithm", [FedSNLite(lr=0.2), FedSNLite(lr=0.2, tail=True), FedSN(lr=0.2, radius=0.3)])
def test_clients_alone_and_stacked(algorithm: Any, dtype: torch.dtype, close: float) -> None:
    one, other = (play(experiment(algorithm, 3, task=blobs(dtype=dtype), local=LocalWork(steps=3, batch_size=8),
                                  stack=stack))[0].double() for stack in (True, False))
    assert float((one - other).norm() / other.norm()) < close and bool(other.norm() > 0)


class Square(torch.autograd.Function):
    """x^2, whose derivative is written without its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(self.linear(x))


class Attention(nn.Module):
    """Fused attention has no second derivative on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x).view(-1, 1, 2, 3)
        return nn.functional.scaled_dot_product_attention(z, z, z).mean(2).flatten(1)


@pytest.mark.parametrize(("model", "says"), [(Once(), "Square is marked with @once_differentiable"),
                                             (Attention(), "scaled_dot_product_flash_attention")])
@pytest.mark.parametrize("algorithm", [FedSNLite(), Averaging(over="rounds").around(FedSN())])
def test_a_model_without_second_derivatives_is_refused(algorithm: Any, model: nn.Module, says: str) -> None:
    x = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    task = SupervisedTask(model, "cross_entropy", [(x, np.arange(9) % 3)] * 2)
    with pytest.raises(ConfigError) as error:
        execute(experiment(algorithm, 1, task=task))
    assert error.value.key == "algorithm" and "FedSN" in str(error.value.found)
    assert says in str(error.value) and "\n" not in str(error.value)
    execute(experiment(FedAvg(), 1, task=task))
