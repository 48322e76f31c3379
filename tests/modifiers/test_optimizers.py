"""Optimisers by name: the same as the class run by hand on a module, in any place and after any interruption."""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from problems import SIZES, blobs, experiment, play
from rows import ROWS
from torch.nn import functional as F
from toy import Quadratic, reply

import fedlearn
from fedlearn.algorithms.fedadam import FedAdam
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.fedbuff import FedBuff
from fedlearn.algorithms.feddyn import FedDyn
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.contracts import ServerAlgorithm
from fedlearn.modifiers.averaging import Averaging
from fedlearn.modifiers.optimizer_names import known
from fedlearn.modifiers.optimizer_state import pack, unpack
from fedlearn.modifiers.optimizers import LocalOptimizer, ServerOptimizer, optimised, plain
from fedlearn.modifiers.stepper import Recipe, Stepper
from fedlearn.policies.local_work import LocalWork
from fedlearn.policies.schedule import InverseTime
from fedlearn.policies.weighting import UniformWeighting
from fedlearn.protocols.asynchronous import Asynchronous
from fedlearn.running.execute import setup_of
from fedlearn.vectors import digest, flatten, trainable, views

ROUNDS, STEPS = 3, 4
TASK = blobs(dtype=torch.float64)

# name, options, the same class
LOCAL = [
    ("adamw", {"betas": [0.8, 0.95], "weight_decay": 0.1}, torch.optim.AdamW),
    ("SGD", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD),
    ("rmsprop", {}, torch.optim.RMSprop),
    ("nadam", {}, torch.optim.NAdam),
    ("asgd", {}, torch.optim.ASGD),
    ("adabelief", {}, pytorch_optimizer.AdaBelief),
    ("lion", {"weight_decay": 0.01}, pytorch_optimizer.Lion),
    ("diffgrad", {}, pytorch_optimizer.DiffGrad),
    ("adamp", {"weight_decay": 0.1}, pytorch_optimizer.AdamP),
    ("sgdp", {"momentum": 0.9, "weight_decay": 0.1}, pytorch_optimizer.SGDP),
    ("lamb", {}, pytorch_optimizer.Lamb),
    ("pytorch_optimizer.RAdam", {}, pytorch_optimizer.RAdam),
]
SERVER = [
    ("adam", {"betas": [0.9, 0.99], "eps": 1e-3}, torch.optim.Adam),
    ("adagrad", {}, torch.optim.Adagrad),
    ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD),
    ("yogi", {}, pytorch_optimizer.Yogi),
    ("adafactor", {}, torch.optim.Adafactor),
    ("lars", {}, pytorch_optimizer.LARS),
    ("shampoo", {}, pytorch_optimizer.Shampoo),
]
RESUMED = ["sgd", "adam", "adabelief", "adamp", "lion", "diffgrad", "prodigy", "shampoo", "soap", "adafactor", "sm3",
           "ademamix", "madgrad", "apollodqn", "novograd"]


def trained(algorithm: ServerAlgorithm, local: Any = None, server: Any = None, **choices: Any) -> torch.Tensor:
    """Return the model after some rounds; ``work`` is what clients do in one."""
    task = choices.setdefault("task", TASK)
    choices.setdefault("weighting", UniformWeighting())
    choices["local"] = choices.pop("work", LocalWork(steps=STEPS, batch_size=None))
    return play(experiment(optimised(algorithm, task, local, server), ROUNDS, **choices))[0]


def locally(model: torch.nn.Module, client: int, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    x, y = TASK.store.batch(client, range(int(TASK.sizes[client])))
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return flatten(model.parameters())


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stack", [False, "auto"])
@pytest.mark.parametrize(("name", "options", "cls"), LOCAL, ids=lambda v: v if isinstance(v, str) else "")
def test_a_clients_optimiser_is_that_class_on_a_module(name: str, options: dict, cls: type, stack: Any) -> None:
    model = deepcopy(TASK.model)
    for _ in range(ROUNDS):
        ends = []
        for client in range(len(SIZES)):
            own = deepcopy(model)
            ends.append(locally(own, client, cls(own.parameters(), lr=0.02, **options)))
        torch.nn.utils.vector_to_parameters(torch.stack(ends).mean(0), model.parameters())
    close(trained(FedAvg(lr=0.02), LocalOptimizer(name, options), stack=stack), flatten(model.parameters()))


@pytest.mark.parametrize(("name", "options", "cls"), SERVER, ids=lambda v: v if isinstance(v, str) else "")
def test_the_servers_optimiser_is_that_class_on_a_module(name: str, options: dict, cls: type) -> None:
    model = deepcopy(TASK.model)
    optimizer = cls(model.parameters(), lr=0.03, **options)
    for _ in range(ROUNDS):
        ends = []
        for client in range(len(SIZES)):
            own = deepcopy(model)
            ends.append(locally(own, client, torch.optim.SGD(own.parameters(), lr=0.1)))
        step = torch.stack(ends).mean(0) - flatten(model.parameters())
        parts = step.split([p.numel() for _, p in trainable(model)])
        for p, part in zip(model.parameters(), parts, strict=True):
            p.grad = -part.view(p.shape)
        optimizer.step()
    close(trained(FedAvg(), server=ServerOptimizer(name, 0.03, options)), flatten(model.parameters()))


# They look at the model's shapes only, or draw random numbers.
UNLIKE = {"ranger21": "needs an option", "muon": "groups", "adamuon": "groups", "normuon": "groups", "adago": "groups",
          "gravity": "random", "kron": "random", "magma": "random"}


def test_every_step_is_that_of_the_class_bit_for_bit() -> None:
    """Also of those that magnify any rounding, so that a run of theirs can only be compared like this."""
    shapes, stream = ((9, 11), (11,)), torch.Generator().manual_seed(5)
    x, *gs = torch.randn(6, 110, generator=stream, dtype=torch.float64)
    tried = 0
    for name, one in known().items():
        if one.refused or name in UNLIKE:
            continue
        recipe = Recipe("local", name, 0.02, (), shapes)
        stepper, y, state = Stepper(recipe), x.clone(), {}
        parameters = [torch.nn.Parameter(part.clone()) for part in views(x, [torch.Size(s) for s in shapes])]
        optimizer = recipe.cls(parameters, lr=0.02)
        for g in gs:
            # What another client does in between shows nowhere.
            stepper.step(x.clone(), g + 1, {}, 3.0, (g + 1).abs())
            curvature = g.abs() if stepper.wants_curvature(state) else None
            state = unpack(pack(stepper.step(y, g.clone(), state, curvature=curvature)))
            for p, part in zip(parameters, views(g.clone(), [p.shape for p in parameters]), strict=True):
                p.grad = part
            given = {} if curvature is None else {"hessian": views(curvature, [p.shape for p in parameters])}
            optimizer.step(**given)
        assert torch.equal(y, flatten(parameters)), name
        tried += 1
    assert tried > 90


def test_plain_sgd_by_name_is_the_algorithm_itself() -> None:
    x = trained(FedAvg(lr=0.1), weighting=UniformWeighting())
    assert torch.equal(trained(FedAvg(lr=0.1), "sgd"), x)
    close(trained(FedAvg(lr=0.1), server=ServerOptimizer("sgd", 1.0)), x)
    choices: dict[str, Any] = {"protocol": Asynchronous(), "cohort": 3}
    assert torch.equal(trained(FedBuff(buffer=2), "sgd", **choices), trained(FedBuff(buffer=2), **choices))


@pytest.mark.parametrize("algorithm", [FedAdam(), Scaffold(), FedDyn()], ids=lambda a: type(a).__name__)
def test_the_server_may_have_any_other_state(algorithm: ServerAlgorithm) -> None:
    close(trained(algorithm, server=ServerOptimizer("sgd", 1.0)), trained(algorithm))
    assert not torch.equal(trained(algorithm, server=ServerOptimizer("adam", 0.1)), trained(algorithm))


def test_schedules_multiply_the_step_sizes() -> None:
    schedule = InverseTime(0.5, server=True)
    assert torch.equal(trained(FedAvg(lr=0.1), "sgd", schedule=InverseTime(0.5)),
                       trained(FedAvg(lr=0.1), schedule=InverseTime(0.5)))
    close(trained(FedAvg(lr=0.1), server=ServerOptimizer("sgd", 1.0), schedule=schedule),
          trained(FedAvg(lr=0.1), schedule=schedule))


@pytest.mark.parametrize("name", ["adamw", "adabelief", "lion", "diffgrad", "nadam", "adahessian"])
def test_clients_in_a_stack_are_as_alone(name: str) -> None:
    choices: dict[str, Any] = {"work": LocalWork(epochs=2, batch_size=5)}    # unequal numbers of steps
    if name == "adahessian":
        choices["oracle"] = "vmap"
    alone = trained(FedAvg(lr=0.02), name, stack=False, **choices)
    close(trained(FedAvg(lr=0.02), name, stack=True, **choices), alone)


@pytest.mark.parametrize(("name", "stacked"), [("adamw", True), ("adabelief", True), ("lamb", False), ("adamp", False),
                                               ("muon", False), ("prodigy", False),
                                               ("diffgrad", False)])
def test_who_treats_coordinates_by_themselves_is_stacked_unasked(name: str, stacked: bool) -> None:
    task = blobs()
    algorithm = optimised(FedAvg(), task, name)
    assert setup_of(experiment(algorithm, task=task)).stack is stacked
    assert stacked or algorithm.unstackable or algorithm.unsteady
    assert setup_of(experiment(optimised(FedAvg(), task, LocalOptimizer(name, keep="keep")), task=task)).stack is False


def test_an_option_may_make_an_optimiser_unstackable() -> None:
    assert not optimised(FedAvg(), TASK, LocalOptimizer("adan")).unstackable
    assert "Adan with these options" in optimised(FedAvg(), TASK, LocalOptimizer("adan", {"max_grad_norm": 5.0})
                                                  ).unstackable


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"server_optimizer": ServerOptimizer(name, 0.05)}
    if name not in ("shampoo", "soap"):
        chosen["local_optimizer"] = LocalOptimizer(name, keep="keep")
    go = partial(fedlearn.run, algorithm=FedAvg(lr=0.02), task=blobs(), cohort=3, progress="none",
                 local=LocalWork(steps=2), evaluate_every=0, **chosen)
    whole = go(rounds=4)
    go(rounds=2, folder=tmp_path)
    assert go(rounds=4, folder=tmp_path, resume=True).sha256 == whole.sha256


def test_a_pickled_algorithm_does_the_same() -> None:
    algorithm = optimised(FedAvg(lr=0.02), TASK, LocalOptimizer("adamp", keep="keep"), ServerOptimizer("adam", 0.1))
    first = play(experiment(algorithm, ROUNDS, task=TASK))[0]
    assert digest(play(experiment(pickle.loads(pickle.dumps(algorithm)), ROUNDS, task=TASK))[0]) == digest(first)


def toy(steps: int = 2) -> Quadratic:
    g = torch.Generator().manual_seed(3)
    a, t = 0.5 + torch.rand(5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    return Quadratic(a, t, poison=True, directions=torch.randn(steps, 5, generator=g, dtype=torch.float64))


def test_a_kept_state_goes_on_and_is_not_changed_by_the_work() -> None:
    algorithm, x = LocalOptimizer("adam", keep="keep").around(FedAvg(lr=0.1)), torch.ones(5, dtype=torch.float64)
    p = torch.nn.Parameter(x.clone())
    optimizer, problem, c = torch.optim.Adam([p], lr=0.1), toy(), algorithm.client_init(x)
    for _ in range(2):
        p.data = x.clone()
        for _ in range(2):
            p.grad = problem.a * (p.detach() - problem.t)
            optimizer.step()
        once, after = reply(algorithm, {"x": x}, c, toy(), 2)
        again, _ = reply(algorithm, {"x": x}, c, toy(), 2)
        assert torch.equal(once["dx"], again["dx"])
        close(once["dx"], p.detach() - x)
        assert [len(t) for t in after.own] == [len(t) for t in c.own]
        c = after


def test_adahessian_gets_the_diagonal_of_the_hessian() -> None:
    for period in (1, 2):
        algorithm = LocalOptimizer("adahessian", {"update_period": period}).around(FedAvg(lr=0.1))
        assert algorithm.hessians and algorithm.directions
        x, problem = torch.ones(5, dtype=torch.float64), toy(4)
        p = torch.nn.Parameter(x.clone())
        optimizer = pytorch_optimizer.AdaHessian([p], lr=0.1, update_period=period)
        for k in range(4):
            p.grad = problem.a * (p.detach() - problem.t)
            if k % period == 0:
                optimizer.step(hessian=[problem.a])     # exactly what the estimate is where H is diagonal
            else:
                optimizer.step()
        close(reply(algorithm, {"x": x}, (), problem, 4)[0]["dx"], p.detach() - x)


def test_averaging_goes_around_it() -> None:
    algorithm = Averaging().around(optimised(FedAvg(lr=0.02), TASK, "adamw"))
    local = LocalWork(steps=STEPS, batch_size=None)
    averaged = play(experiment(algorithm, ROUNDS, task=TASK, local=local))[0]
    assert averaged.isfinite().all() and not torch.equal(averaged, trained(FedAvg(lr=0.02), "adamw"))


@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row.algorithm, ServerAlgorithm)
                                 and plain(row.algorithm)], ids=lambda r: type(r.algorithm).__name__ + r.label)
def test_who_says_so_makes_plain_local_steps(row: Any) -> None:
    x = torch.ones(5, dtype=torch.float64)
    algorithm = row.algorithm
    b = algorithm.broadcast(algorithm.server_init(x))
    own, _ = reply(algorithm, b, algorithm.client_init(x), toy(), 2, factor=0.5)
    named = LocalOptimizer("sgd").around(algorithm)
    other, _ = reply(named, b, named.client_init(x), toy(), 2, factor=0.5)
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert {type(r.algorithm) for r in ROWS} > {FedAvg, FedAdam, FedBuff}
