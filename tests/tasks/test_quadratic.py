"""Quadratics: the constants that were asked for, the optimum, the noise, and refused dials."""

import itertools

import numpy as np
import pytest
import torch

from fedlearn.errors import ConfigError, DataError
from fedlearn.policies.local_work import LocalWork
from fedlearn.seeds import generator
from fedlearn.tasks.quadratic import Quadratic, QuadraticTask
from fedlearn.vectors import digest

DIALS = [
    Quadratic(dimension=6),
    Quadratic(dimension=2, H=3.0, mu=0.5, tau=2.5, zeta_star=0.2, B=1.0),
    Quadratic(dimension=9, tau=0.0, zeta_star=0.0, sigma=0.0, B=0.0),
    Quadratic(dimension=5, size_exponent=1.2, samples_per_client=40),
]


def norm2(a):
    return np.linalg.norm(a, 2)


@pytest.mark.parametrize("clients", [2, 5])
@pytest.mark.parametrize("dials", DIALS)
def test_the_dials_are_the_constants(dials, clients):
    task = dials.build(clients, 1, torch.float64)
    for name, value in task.constants().items():
        if hasattr(dials, name):
            assert value == pytest.approx(getattr(dials, name), rel=1e-12, abs=1e-12), name
    assert task.constants()["M"] == clients
    for A in task.A.numpy():
        assert np.linalg.eigvalsh(A).min() >= dials.mu * (1 - 1e-12)
        assert np.linalg.eigvalsh(A).max() <= dials.H * (1 + 1e-12)


def test_constants_by_brute_force():
    task = DIALS[3].build(5, 2, torch.float64)
    A, o, p, c = task.A.numpy(), task.optima.numpy(), task.sizes / task.sizes.sum(), task.constants()
    assert len(set(task.sizes)) > 2
    mean = sum(w * a for w, a in zip(p, A, strict=True))
    x = np.linalg.solve(mean, sum(w * a @ b for w, a, b in zip(p, A, o, strict=True)))
    gradients = [a @ (x - b) for a, b in zip(A, o, strict=True)]
    expected = {
        "H": max(norm2(a) for a in A), "mu": np.linalg.eigvalsh(mean)[0],
        "tau": max(norm2(a - b) for a, b in itertools.combinations(A, 2)),
        "tau_mean": max(norm2(a - mean) for a in A),
        "zeta_star": np.sqrt(sum(w * g @ g for w, g in zip(p, gradients, strict=True))),
        "phi_star": np.sqrt(sum(w * (b - x) @ (b - x) for w, b in zip(p, o, strict=True))),
        "sigma": 1.0, "B": np.linalg.norm(x), "M": 5}
    assert c == pytest.approx(expected, rel=1e-11)
    value = sum(w * g @ (x - b) for w, g, b in zip(p, gradients, o, strict=True)) / 2
    assert task.minimum == pytest.approx(value, rel=1e-12)
    assert np.linalg.norm(sum(w * g for w, g in zip(p, gradients, strict=True))) < 1e-13
    assert np.allclose(task.optimum.numpy(), x, rtol=1e-12, atol=0)


def test_evaluate_tells_loss_gap_and_distance_in_float64():
    task = DIALS[3].build(5, 2, torch.float32)
    x = torch.from_numpy(generator(0, "test").standard_normal(5)).float()
    A, o, p = task.A.double(), task.optima.double(), task.sizes / task.sizes.sum()
    loss = sum(p[m] * float((x.double() - o[m]) @ A[m] @ (x.double() - o[m])) / 2 for m in range(5))
    found = task.evaluate(x)
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["suboptimality"] == pytest.approx(loss - task.minimum, rel=1e-12)
    assert found["distance"] == pytest.approx(float((x.double() - task.optimum).norm()), rel=1e-14)
    assert task.evaluate(task.optimum) == {"loss": task.minimum, "suboptimality": 0.0, "distance": 0.0}


def test_several_minimisers_give_the_one_nearest_to_the_start():
    A = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))[None]
    task = QuadraticTask(A, torch.tensor([[3.0, 7.0]], dtype=torch.float64), torch.tensor([0.0, 5.0]).double())
    assert task.optimum.tolist() == pytest.approx([3.0, 5.0])
    assert task.minimum == pytest.approx(0.0, abs=1e-15)
    assert task.constants()["mu"] == 0


def test_the_noise_is_keyed_and_has_the_stated_variance():
    task = Quadratic(dimension=4, sigma=3.0, samples_per_client=25).build(2, 0, torch.float64)
    local = LocalWork(epochs=2000, batch_size=10)  # batches of 10, 10 and 5

    def noise(seed, round, client):
        return torch.stack(task.draws(client, generator(seed, "local", round, client), local))

    drawn = noise(0, 1, 1)
    assert drawn.shape == (6000, 4)
    assert torch.equal(drawn, noise(0, 1, 1))
    for other in ((1, 1, 1), (0, 2, 1), (0, 1, 0)):
        assert not torch.equal(drawn, noise(*other))
    for place, batch in ((0, 10), (1, 10), (2, 5)):
        part = drawn[place::3]
        # 8000 normals: five standard errors of their variance are 8 %, of their mean 0.06.
        assert float(part.square().sum(1).mean()) == pytest.approx(9 / batch, rel=0.08)
        assert float(part.mean().abs()) < 0.06


def test_no_noise_draws_nothing():
    task = Quadratic(dimension=4, sigma=0.0).build(2, 0, torch.float64)
    rng = generator(0, "local")
    assert task.draws(0, rng, LocalWork(steps=3)) == [None] * 3
    assert rng.random() == generator(0, "local").random()


def test_the_seed_decides_everything():
    def sha(seed, dtype=torch.float64):
        task = DIALS[3].build(4, seed, dtype)
        return digest({"A": task.A, "o": task.optima, "x": task.optimum, "n": torch.from_numpy(task.sizes)})
    assert sha(1) == sha(1)
    assert sha(1) != sha(2)
    small = DIALS[3].build(4, 1, torch.float32)
    assert small.initial(0).dtype == small.A.dtype == torch.float32
    assert small.optimum.dtype == torch.float64


@pytest.mark.parametrize(("wrong", "message"), [
    ({"mu": 2.0}, "task.mu: found 2.0; allowed: a number > 0 and <= task.H = 1. "),
    ({"tau": 0.99}, "task.tau: found 0.99; allowed: a number >= 0 and <= task.H - task.mu = 1 - 0.05 = 0.95. "),
    ({"tau": -1.0}, "task.tau: found -1.0; allowed: a number >= 0."),
    ({"mu": 0.0}, "task.mu: found 0.0; allowed: a number > 0."),
    ({"H": float("nan")}, "task.H: found nan; "),
    ({"dimension": 1}, "task.dimension: found 1; allowed: a number >= 2."),
    ({"sigma": -0.1}, "task.sigma: found -0.1; "),
    ({"samples_per_client": 0}, "task.samples_per_client: found 0; "),
    ({"size_exponent": -1.0}, "task.size_exponent: found -1.0; "),
])
def test_wrong_dials(wrong, message):
    with pytest.raises(ConfigError) as caught:
        Quadratic(**wrong)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_largest_tau_is_allowed_in_spite_of_rounding():
    assert Quadratic(H=0.3, mu=0.1, tau=0.2).build(2, 0, torch.float64).constants()["tau"] == pytest.approx(0.2)


@pytest.mark.parametrize("dial", ["tau", "zeta_star"])
def test_a_single_client_cannot_differ(dial):
    dials = {"tau": 0.0, "zeta_star": 0.0, dial: 0.5}
    with pytest.raises(ConfigError, match=rf"^task.{dial}: found 0.5; allowed: 0 with clients=1\."):
        Quadratic(**dials).build(1, 0, torch.float64)
    assert Quadratic(tau=0.0, zeta_star=0.0).build(1, 0, torch.float64).constants()["M"] == 1


def test_wrong_matrices():
    eye, o, x = torch.eye(2)[None], torch.zeros(1, 2), torch.zeros(2)
    with pytest.raises(ConfigError, match=r"^A: found \(1, 2, 2\); allowed: the shape \(1, 3, 3\)"):
        QuadraticTask(eye, o, torch.zeros(3))
    with pytest.raises(ConfigError, match=r"^optima: found \(2,\); allowed: the shape \(1, 2\)"):
        QuadraticTask(eye, o[0], x)
    with pytest.raises(ConfigError, match="a matrix of client 0 with the smallest eigenvalue -1 "):
        QuadraticTask(-eye, o, x)
    with pytest.raises(ConfigError, match="A - A' up to 1"):
        QuadraticTask(torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]), o, x)
    with pytest.raises(DataError, match="client 0: found 0 samples"):
        QuadraticTask(eye, o, x, sizes=[0])
