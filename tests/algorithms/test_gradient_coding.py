"""Gradient codes: what decoding recovers, and what that means for gradient descent."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.algorithms.gradient_coding import GradientCoding, decode_graph
from fedlearn.errors import ConfigError


def error(code: GradientCoding, held: np.ndarray, responded: np.ndarray) -> float:
    return float(((held @ code.decode(held, responded) - 1) ** 2).mean())


def test_graph_code_assigns_two_blocks_a_machine_and_d_machines_a_block() -> None:
    code = GradientCoding(replication=3)
    held = code.assignment(16, np.random.default_rng(0))
    assert held.shape == (16, 24) and set(held.sum(0)) == {2} and set(held.sum(1)) == {3}
    assert len({tuple(column) for column in held.T}) == 24
    assert np.array_equal(held, code.assignment(16, np.random.default_rng(0)))
    assert not np.array_equal(held, code.assignment(16, np.random.default_rng(1)))


def test_codes_in_groups() -> None:
    rng = np.random.default_rng(0)
    frc = GradientCoding(code="frc", replication=2)
    held = frc.assignment(6, rng)
    assert held[::2].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert held[1::2].tolist() == held[::2].tolist()
    w = frc.decode(held, np.array([1, 1, 0, 1, 0, 0], dtype=bool))
    assert w.tolist() == [0.5, 0.5, 0, 1, 0, 0] and (held @ w).tolist() == [1, 1, 1, 1, 0, 0]
    uncoded = GradientCoding(code="uncoded", replication=1, decoding="fixed", straggler_probability=0.2)
    assert uncoded.assignment(3, rng).tolist() == np.eye(3).tolist()
    assert uncoded.decode(np.eye(3), np.array([True, False, True])).tolist() == [1.25, 0, 1.25]


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_optimal_decoding_is_the_least_squares_solution(degree: int) -> None:
    rng = np.random.default_rng(degree)
    code, seen = GradientCoding(replication=degree), set()
    for _ in range(60):
        n = int(rng.choice([6, 8, 12]))
        held = code.assignment(n, rng)
        responded = rng.random(held.shape[1]) > rng.choice([0.05, 0.3, 0.5, 0.8])
        w = code.decode(held, responded)
        assert not w[~responded].any()
        alive = (held * responded).astype(float)
        best = alive @ np.linalg.lstsq(alive, np.ones(n), rcond=None)[0]
        assert np.abs(held @ w - best).max() < 1e-12
        seen.add(round(float(((best - 1) ** 2).sum()), 6))
    assert len(seen) > 5


def test_nobody_and_everybody_responds() -> None:
    held = GradientCoding(replication=3).assignment(8, np.random.default_rng(0))
    assert not decode_graph(held, np.zeros(12, dtype=bool)).any()
    assert held @ decode_graph(held, np.ones(12, dtype=bool)) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize(("p", "d"), [(0.1, 3), (0.1, 4), (0.2, 3), (0.2, 4)])
def test_decoding_error_with_random_stragglers(p: float, d: int) -> None:
    """400 blocks, 60 draws: optimal about p^d (within 3 times), fixed p / (d (1 - p)) (within 5%)."""
    rng = np.random.default_rng(7)
    optimal = GradientCoding(replication=d)
    fixed = GradientCoding(replication=d, decoding="fixed", straggler_probability=p)
    held = optimal.assignment(400, rng)
    draws = [rng.random(200 * d) > p for _ in range(60)]
    found = np.mean([error(optimal, held, r) for r in draws])
    if p**d * 400 * 60 > 20:
        assert p**d / 3 < found < 3 * p**d
    assert found < p**d * 3 + 1e-3
    assert np.mean([error(fixed, held, r) for r in draws]) == pytest.approx(p / (d * (1 - p)), rel=0.05)


@pytest.mark.parametrize("p", [0.1, 0.2])
def test_isolating_blocks_costs_half_of_what_it_costs_a_repetition_code(p: float) -> None:
    rng = np.random.default_rng(3)
    graph, frc = GradientCoding(replication=3), GradientCoding(code="frc", replication=3)
    held, groups = graph.assignment(400, rng), frc.assignment(400, rng)
    alive, budget = np.ones(600, dtype=bool), int(600 * p)
    for block in rng.permutation(400):
        edges = np.flatnonzero(held[block] & alive)
        if len(edges) == 3 and budget >= 3:
            alive[edges], budget = False, budget - 3
    assert error(graph, held, alive) == pytest.approx(p / 2, rel=0.1)
    assert error(frc, groups, np.arange(600) >= 600 * p) == pytest.approx(p, rel=1e-12)


def test_coded_descent_reaches_a_lower_floor() -> None:
    """Least squares with 20% stragglers: the optimum is reached to floors in the known order."""
    rng = np.random.default_rng(0)
    p, d, n, samples, size = 0.2, 4, 100, 2400, 10
    features = rng.standard_normal((samples, size))
    labels = features @ rng.standard_normal(size) + rng.standard_normal(samples)
    optimum = np.linalg.lstsq(features, labels, rcond=None)[0]
    order = rng.permutation(samples)

    def floor(code: GradientCoding) -> float:
        held = code.assignment(n, np.random.default_rng(1))
        blocks = np.split(order, n)
        gram = np.stack([features[i].T @ features[i] for i in blocks])
        cross = np.stack([features[i].T @ labels[i] for i in blocks])
        straggle, x, distances = np.random.default_rng(2), np.zeros(size), []
        for r in range(160):
            alpha = held @ code.decode(held, straggle.random(held.shape[1]) > p)
            x = x - code.lr * (alpha @ (gram @ x - cross)) / samples
            distances.append(((x - optimum) ** 2).sum() if r >= 80 else 0.0)
        return float(np.sum(distances)) / 80

    fixed = {"decoding": "fixed", "straggler_probability": p}
    graph, frc = floor(GradientCoding(0.5, d)), floor(GradientCoding(0.5, d, code="frc"))
    unbiased = floor(GradientCoding(0.5, d, **fixed))
    uncoded = floor(GradientCoding(0.5, 1, code="uncoded", **fixed))
    assert graph < unbiased / 10 and unbiased < uncoded / 2 and graph < 3 * frc


@pytest.mark.parametrize(("wrong", "key"), [
    ({"code": "grap"}, "code"), ({"decoding": "best"}, "decoding"), ({"replication": 1}, "replication"),
    ({"code": "uncoded"}, "replication"), ({"decoding": "fixed"}, "straggler_probability"),
    ({"straggler_probability": 0.1}, "straggler_probability"),
    ({"decoding": "fixed", "straggler_probability": 1.0}, "straggler_probability"),
])
def test_wrong_choices_name_their_key(wrong: dict, key: str) -> None:
    with pytest.raises(ConfigError) as e:
        GradientCoding(**wrong)
    assert e.value.key == f"algorithm.{key}"


@pytest.mark.parametrize(("code", "blocks"),
                         [("graph", 2), ("graph", 3), ("graph", 5), ("frc", 5), ("frc", 0)])
def test_numbers_of_blocks_without_a_code_are_refused(code: str, blocks: int) -> None:
    with pytest.raises(ConfigError, match=f"clients: found {blocks}"):
        GradientCoding(code=code, replication=3).assignment(blocks, np.random.default_rng(0))
