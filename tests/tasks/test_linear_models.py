"""Least squares and logistic regression: the optimum, the constants, the data and refused dials."""

import itertools

import numpy as np
import pytest
import torch

from fedlearn.errors import ConfigError
from fedlearn.tasks.least_squares import LeastSquares
from fedlearn.tasks.logistic import Logistic
from fedlearn.vectors import digest, dot

DIALS = {"dimension": 5, "samples_per_client": 30, "size_exponent": 0.8}
KINDS = [LeastSquares(**DIALS), LeastSquares(**DIALS, l2=0.2), Logistic(**DIALS, flip=0.1),
         Logistic(**DIALS, weight_norm=50.0, l2=1e-6)]  # the last one is nearly separable
CLIENTS = 4


def objective(dials, task, m, x, index=None):
    """F_m(x), or that of single samples, from its definition."""
    a, y = task.store.client(m)
    z = a @ x
    if isinstance(dials, Logistic):
        losses = -torch.log(torch.where(y == 1, torch.sigmoid(z), torch.sigmoid(-z)))
    else:
        losses = (z - y) ** 2 / 2
    return (losses.mean() if index is None else losses[index]) + dials.l2 / 2 * dot(x, x)[0]


def gradients(dials, task, x):
    return [torch.autograd.functional.jacobian(lambda z, m=m: objective(dials, task, m, z), x)
            for m in range(CLIENTS)]


@pytest.fixture(params=range(len(KINDS)))
def problem(request):
    return KINDS[request.param], KINDS[request.param].build(CLIENTS, 5, torch.float64)


def test_the_mean_gradient_vanishes_at_the_optimum(problem):
    dials, task = problem
    p = task.sizes / task.sizes.sum()
    assert len(set(task.sizes)) > 2
    mean = sum(w * g for w, g in zip(p, gradients(dials, task, task.optimum), strict=True))
    assert float(mean.norm()) < 1e-13
    value = sum(w * float(objective(dials, task, m, task.optimum)) for m, w in enumerate(p))
    assert task.minimum == pytest.approx(value, rel=1e-12)


def test_constants_by_brute_force(problem):
    dials, task = problem
    x, p, c = task.optimum, task.sizes / task.sizes.sum(), task.constants()
    hessian = torch.autograd.functional.hessian
    H = [hessian(lambda z, m=m: objective(dials, task, m, z), x).numpy() for m in range(CLIENTS)]
    steepest = [hessian(lambda z, m=m: objective(dials, task, m, z), torch.zeros_like(x)).numpy()
                for m in range(CLIENTS)]  # a logistic loss is most curved at 0
    mean, g = sum(w * h for w, h in zip(p, H, strict=True)), gradients(dials, task, x)
    noise = 0.0
    for m in range(CLIENTS):
        single = torch.stack([torch.autograd.functional.jacobian(
            lambda z, m=m, i=i: objective(dials, task, m, z, i), x) for i in range(task.sizes[m])])
        noise += p[m] * float((single - g[m]).square().sum(1).mean())
    mu = dials.l2 if isinstance(dials, Logistic) else np.linalg.eigvalsh(mean)[0]
    expected = {
        "H": max(np.linalg.norm(h, 2) for h in steepest), "mu": mu,
        "tau": max(np.linalg.norm(a - b, 2) for a, b in itertools.combinations(H, 2)),
        "tau_mean": max(np.linalg.norm(h - mean, 2) for h in H),
        "zeta_star": np.sqrt(sum(w * float(v @ v) for w, v in zip(p, g, strict=True))),
        "sigma": np.sqrt(noise), "B": float(x.norm()), "M": CLIENTS}
    assert c == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_evaluate(problem):
    dials, task = problem
    p = task.sizes / task.sizes.sum()
    x = task.optimum + 0.1
    loss = sum(w * float(objective(dials, task, m, x)) for m, w in enumerate(p))
    found = task.evaluate(x)
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["suboptimality"] == pytest.approx(loss - task.minimum, rel=1e-8)
    assert found["distance"] == pytest.approx(0.1 * 5**0.5, rel=1e-12)
    at_best = task.evaluate(task.optimum)
    assert (at_best["suboptimality"], at_best["distance"]) == (0.0, 0.0)
    # Close to x* the gap is far below the rounding of F itself, and still right.
    near = task.evaluate(task.optimum + 1e-10)
    assert near["suboptimality"] < 1e-16
    assert ("accuracy" in found) == isinstance(dials, Logistic)


def test_accuracy_is_on_held_out_data():
    task = Logistic(dimension=5, weight_norm=20.0, concept_shift=0.0, test_samples=300).build(4, 0, torch.float32)
    assert task.test is not None and task.test[0].shape == (300, 5)
    x = task.optimum.float()
    assert task.evaluate(x)["accuracy"] > 0.8
    assert task.evaluate(-x)["accuracy"] == pytest.approx(1 - task.evaluate(x)["accuracy"])
    assert "accuracy" not in Logistic(test_samples=0).build(4, 0, torch.float32).evaluate(torch.zeros(20))


def test_flipped_labels_are_harder_to_predict():
    accuracy = [task.evaluate(task.optimum)["accuracy"] for flip in (0.0, 0.2, 0.4) for task in
                [Logistic(dimension=5, weight_norm=50.0, concept_shift=0.0, flip=flip).build(8, 0, torch.float64)]]
    assert accuracy[0] > accuracy[1] + 0.1 > accuracy[2] + 0.2


def test_the_shifts_are_what_they_say():
    def constants(**dials):
        task = LeastSquares(dimension=4, samples_per_client=4000, noise=0.0, **dials).build(6, 0, torch.float64)
        return task.constants()
    even = constants(covariate_shift=0.0, concept_shift=0.0)
    assert even["zeta_star"] < 1e-13  # no noise and one truth: every client is at its optimum
    assert even["tau"] < 0.2
    assert even["H"] == pytest.approx(1.0, rel=0.1)
    assert even["H"] / even["mu"] == pytest.approx(10.0, rel=0.2)  # the dial `condition`
    assert even["B"] == pytest.approx(1.0, rel=1e-12)
    assert constants(covariate_shift=0.5, concept_shift=0.0)["tau"] > 0.5
    assert constants(covariate_shift=0.5, concept_shift=0.0)["zeta_star"] < 1e-13
    assert constants(covariate_shift=0.0, concept_shift=0.5)["zeta_star"] > 0.1


@pytest.mark.parametrize("dials", [LeastSquares(**DIALS), Logistic(**DIALS)])
def test_the_seed_decides_the_data_and_nothing_else(dials):
    def sha(seed):
        state = torch.random.get_rng_state()
        task = dials.build(3, seed, torch.float64)
        assert torch.equal(state, torch.random.get_rng_state())
        return digest({"x": task.store.features, "y": task.store.labels, "o": task.optimum, "0": task.initial(1)})
    assert sha(1) == sha(1)
    torch.rand(3)
    assert sha(1) != sha(2)
    first, more = dials.build(3, 1, torch.float32), LeastSquares(**DIALS | {"size_exponent": 0.0})
    assert first.store.features.dtype == first.store.labels.dtype == first.initial(0).dtype == torch.float32
    few, many = more.build(2, 1, torch.float64), more.build(5, 1, torch.float64)
    assert torch.equal(few.store.client(1)[0], many.store.client(1)[0])


@pytest.mark.parametrize(("kind", "wrong", "message"), [
    (LeastSquares, {"condition": 0.5}, "task.condition: found 0.5; allowed: a number >= 1"),
    (LeastSquares, {"noise": -1.0}, "task.noise: found -1.0; allowed: a number >= 0."),
    (LeastSquares, {"dimension": 0}, "task.dimension: found 0; allowed: a number >= 1."),
    (LeastSquares, {"covariate_shift": 9.0}, "task.covariate_shift: found 9.0; "),
    (Logistic, {"l2": 0.0}, "task.l2: found 0.0; allowed: a number > 0."),
    (Logistic, {"flip": 0.6}, "task.flip: found 0.6; allowed: a number >= 0 and <= 0.5."),
    (Logistic, {"test_samples": -1}, "task.test_samples: found -1; "),
])
def test_wrong_dials(kind, wrong, message):
    with pytest.raises(ConfigError) as caught:
        kind(**wrong)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_too_few_samples_for_an_optimum():
    dials = LeastSquares(dimension=20, samples_per_client=3)
    with pytest.raises(ConfigError, match=r"^task.samples_per_client: found 3; .*dimension = 20.* 6 x 3 = 18"):
        dials.build(6, 0, torch.float64)
    assert LeastSquares(dimension=20, samples_per_client=3, l2=0.1).build(6, 0, torch.float64).constants()["mu"] > 0.09
