"""What every algorithm keeps to: one list of algorithms, crossed with the tests below.

A new algorithm adds one row to ALGORITHMS.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
import torch
from rows import ROWS, Row
from torch import Tensor
from toy import Federation, Quadratic, replies, reply, seen

from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.gradient_coding import GradientCoding
from fedlearn.contracts import MixInfo, Msg, PeerAlgorithm, RoundInfo, ServerAlgorithm, StepInfo, Tree
from fedlearn.errors import ConfigError
from fedlearn.vectors import tree_flat, tree_like, tree_map

CLIENTS, SIZE, STEPS = 4, 6, (5, 3, 3, 1)


def label(row: Row) -> str:
    return type(row.algorithm).__name__ + row.label


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Cross the tests with the rows that are not exempt; those with a mark only with their kind."""
    if "algorithm" not in metafunc.fixturenames:
        return
    name = metafunc.function.__name__
    mine = [row for row in ROWS if name not in row.exempt]
    for mark, kind in (("served", ServerAlgorithm), ("peers", PeerAlgorithm)):
        if metafunc.definition.get_closest_marker(mark):
            mine = [row for row in mine if isinstance(row.algorithm, kind)]
    metafunc.parametrize("algorithm", [row.algorithm for row in mine], ids=[label(row) for row in mine])


served, peers = pytest.mark.served, pytest.mark.peers


def test_exemptions_name_tests_and_give_a_reason() -> None:
    for row in ROWS:
        assert all(name in globals() and len(why) > 10 for name, why in row.exempt.items()), row


def problem(poison: bool = False, dtype: torch.dtype = torch.float64) -> Quadratic:
    g = torch.Generator().manual_seed(3)
    a = torch.rand(CLIENTS, SIZE, generator=g, dtype=torch.float64) + 0.5
    t = torch.randn(CLIENTS, SIZE, generator=g, dtype=torch.float64)
    noise = torch.randn(max(STEPS), CLIENTS, SIZE, generator=g, dtype=torch.float64)
    u = torch.randn(max(STEPS), CLIENTS, SIZE, generator=g, dtype=torch.float64)
    u = u / u.norm(dim=-1, keepdim=True)
    return Quadratic(a.to(dtype), t.to(dtype), noise.to(dtype), poison, u.to(dtype))


def alone(p: Quadratic, m: int) -> Quadratic:
    return p.alone(m)


def steps_of(algorithm: Any) -> tuple[int, ...]:
    """How many steps the clients take: unequally many where the algorithm lets them."""
    return (3,) * CLIENTS if algorithm_needs(algorithm, "equal_steps") else STEPS


def algorithm_needs(algorithm: Any, what: str) -> bool:
    return bool(getattr(algorithm, what, False))


def start(algorithm: Any, dtype: torch.dtype = torch.float64) -> tuple[Msg, list[Tree]]:
    """Return a broadcast and client states as in the middle of a run: nothing is zero, or negative, by chance."""
    g = torch.Generator().manual_seed(5)

    def fuzzy(t: Tensor) -> Tensor:
        return t + torch.randn(t.shape, generator=g, dtype=torch.float64).abs().to(t.dtype)

    x0 = torch.randn(SIZE, generator=g, dtype=torch.float64).to(dtype)
    if isinstance(algorithm, PeerAlgorithm):
        return {}, [tree_map(fuzzy, algorithm.node_init(x0)) for _ in range(CLIENTS)]
    s = tree_map(fuzzy, algorithm.server_init(x0))
    b = {**(algorithm.prelude.broadcast(s) if algorithm.prelude else {}), **algorithm.broadcast(s)}
    return b, [tree_map(fuzzy, algorithm.client_init(x0)) for _ in range(CLIENTS)]


def close(a: Tree, b: Tree, rtol: float = 1e-14) -> None:
    torch.testing.assert_close(tree_flat(a), tree_flat(b), rtol=rtol, atol=1e-15)


def test_alone_and_in_a_stack_alike(algorithm: Any) -> None:
    b, cs = start(algorithm)
    one_by_one = [reply(algorithm, b, cs[m], alone(problem(), m), steps_of(algorithm)[m], 0.5) for m in range(CLIENTS)]
    stacked = replies(algorithm, b, cs, problem(), steps_of(algorithm), 0.5)
    for one, other in zip(one_by_one, stacked, strict=True):
        close(one, other)


def test_oracle_may_reuse_its_buffers(algorithm: Any) -> None:
    b, cs = start(algorithm)
    for m in range(CLIENTS):
        kept = reply(algorithm, b, cs[m], alone(problem(), m), steps_of(algorithm)[m])
        reused = reply(algorithm, b, cs[m], alone(problem(poison=True), m), steps_of(algorithm)[m])
        close(kept, reused, rtol=0)


@served
def test_broadcast_and_client_state_are_never_changed(algorithm: ServerAlgorithm) -> None:
    b, cs = start(algorithm)
    before = tree_map(torch.clone, (dict(b), cs))
    msgs = [reply(algorithm, b, cs[m], alone(problem(), m), steps_of(algorithm)[m])[0] for m in range(CLIENTS)]
    replies(algorithm, b, cs, problem(), steps_of(algorithm))
    close((dict(b), cs), before, rtol=0)
    held = {t.untyped_storage().data_ptr() for t in tree_flat((dict(b), cs)).values()}
    assert not held & {t.untyped_storage().data_ptr() for t in tree_flat(msgs).values()}


def test_initial_model_is_never_changed(algorithm: Any) -> None:
    x0, p = torch.zeros(SIZE, dtype=torch.float64), problem()
    if isinstance(algorithm, PeerAlgorithm):
        algorithm.local_step(algorithm.node_init(x0), alone(p, 0), StepInfo(0, 0, 1))
    else:
        Federation(algorithm, p, x0).round(2)
    assert torch.equal(x0, torch.zeros_like(x0))


@peers
def test_mixing_leaves_the_inbox_and_keeps_an_agreement(algorithm: PeerAlgorithm) -> None:
    _, states = start(algorithm)
    sent = algorithm.outgoing(states[0])
    inbox = {name: torch.stack([v, v, v]) for name, v in sent.items()}
    before = tree_map(torch.clone, inbox)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    mixed = algorithm.mix(tree_map(torch.clone, states[0]), inbox, MixInfo(0, 0, weights))
    close(inbox, before, rtol=0)
    close(algorithm.model(mixed), algorithm.model(states[0]))


@served
def test_a_client_s_model_is_at_first_the_broadcast_one(algorithm: ServerAlgorithm) -> None:
    """What averages local iterates finds the model, not something else that a client works on."""
    b, cs = start(algorithm)
    assert torch.equal(algorithm.iterate(algorithm.local_init(b, cs[0])), b["x"])


@served
def test_server_update_is_pure(algorithm: ServerAlgorithm) -> None:
    s = algorithm.server_init(torch.ones(SIZE, dtype=torch.float64))
    b, cs = start(algorithm)
    mean = seen(algorithm, [reply(algorithm, b, cs[m], alone(problem(), m), 2)[0] for m in (0, 1)], [1.0, 1.0])
    before = tree_map(torch.clone, (s, dict(mean)))
    one, two = (algorithm.server_update(s, mean, RoundInfo(0, 9, 2, CLIENTS, 1.0, (0, 1))) for _ in range(2))
    close((s, dict(mean)), before, rtol=0)
    close(one, two, rtol=0)
    close(tree_like(s, tree_flat(one)), one, rtol=0)
    assert not torch.equal(algorithm.model(one), algorithm.model(s))


@served
def test_a_server_that_says_so_treats_every_coordinate_by_itself(algorithm: ServerAlgorithm) -> None:
    s = algorithm.server_init(torch.ones(SIZE, dtype=torch.float64))
    b, cs = start(algorithm)
    mean = seen(algorithm, [reply(algorithm, b, cs[m], alone(problem(), m), 2)[0] for m in (0, 1)], [1.0, 1.0])
    info = RoundInfo(0, 9, 2, CLIENTS, 1.0, (0, 1))
    halves = []
    for part in (slice(0, 2), slice(2, SIZE)):
        s_part, mean_part = tree_map(lambda v, part=part: v[part], (s, dict(mean)))
        halves.append(algorithm.server_update(s_part, mean_part, info))
    pieces = tree_map(lambda *parts: torch.cat(parts), *halves)
    if algorithm.coordinatewise:
        close(pieces, algorithm.server_update(s, mean, info), rtol=0)
    assert algorithm.coordinatewise or isinstance(algorithm, FedBuff | GradientCoding)


def test_schedule_factor_multiplies_the_client_step_size(algorithm: Any) -> None:
    b, cs = start(algorithm)
    by_factor = reply(algorithm, b, cs[0], alone(problem(), 0), 4, 0.25)
    by_field = reply(replace(algorithm, lr=algorithm.lr / 4), b, cs[0], alone(problem(), 0), 4)
    close(by_factor, by_field)


@served
def test_server_factor_multiplies_the_server_step_size(algorithm: ServerAlgorithm) -> None:
    s = algorithm.server_init(torch.zeros(SIZE, dtype=torch.float64))
    b, cs = start(algorithm)
    mean = seen(algorithm, [reply(algorithm, b, cs[m], alone(problem(), m), 2)[0] for m in (0, 1)], [1.0, 1.0])
    moved, half = (algorithm.model(algorithm.server_update(s, mean, RoundInfo(0, 9, 2, CLIENTS, f, (0, 1))))
                   for f in (1.0, 0.5))
    close(moved / 2, half)


@served
def test_nothing_to_learn_nothing_sent(algorithm: ServerAlgorithm) -> None:
    x0 = torch.ones(SIZE, dtype=torch.float64)
    at_optimum = Quadratic(torch.ones_like(x0), x0)
    msg, _ = reply(algorithm, algorithm.broadcast(algorithm.server_init(x0)), algorithm.client_init(x0),
                   at_optimum, 3)
    assert all(torch.equal(v, torch.zeros_like(v)) for v in msg.values())


def test_dtype_is_kept(algorithm: Any) -> None:
    b, cs = start(algorithm, torch.float32)
    p = problem(dtype=torch.float32)
    trees = [reply(algorithm, b, cs[0], alone(p, 0), 2), replies(algorithm, b, cs, p, steps_of(algorithm))]
    if isinstance(algorithm, ServerAlgorithm):
        federation = Federation(algorithm, p, torch.zeros(SIZE))
        federation.round(2)
        trees += [federation.s, federation.states]
    assert {t.dtype for tree in trees for t in tree_flat(tree).values()} == {torch.float32}


def test_local_work_does_not_depend_on_values(algorithm: Any) -> None:
    """A meta tensor has no values: .item() or an if on one raises."""
    b, cs = start(algorithm)
    p = problem()
    b, c, a, t = tree_map(lambda v: v.to("meta"), (dict(b), cs[0], p.a[0], p.t[0]))
    msg, _ = reply(algorithm, b, c, Quadratic(a, t), 2)
    assert all(v.is_meta and v.shape in ((SIZE,), (1,)) for v in msg.values())


@served
def test_learns(algorithm: ServerAlgorithm) -> None:
    p = problem()
    p.noise = None
    optimum = (p.a * p.t).sum(0) / p.a.sum(0)
    federation = Federation(algorithm, p, optimum + 1)
    for _ in range(60):
        x = federation.round(4)
    assert (x - optimum).norm() < 0.6 * SIZE**0.5


def numbers(algorithm: Any) -> Iterator[str]:
    for f in fields(algorithm):
        if isinstance(getattr(algorithm, f.name), int | float):
            yield f.name


@pytest.mark.parametrize("value", [-1, float("nan")])
def test_hyper_parameters_are_range_checked(algorithm: Any, value: float) -> None:
    for name in numbers(algorithm):
        with pytest.raises(ConfigError) as error:
            replace(algorithm, **{name: value})
        assert error.value.key == f"algorithm.{name}" and "allowed" in str(error.value)


def test_hyper_parameters_are_frozen(algorithm: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        algorithm.lr = 1.0


def test_hyper_parameters_travel_to_other_processes(algorithm: Any) -> None:
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm
