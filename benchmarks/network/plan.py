"""What is compared, on which problem, over which links, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

DDP = "DistributedDataParallel"
HOSTS = 3
ALL_REDUCE = "raw gloo all_reduce"


@dataclass(frozen=True)
class Problem:
    """One data set cut at random into an equal part for every host, an MLP, and the test loss to be reached.

    ``batch`` is of a host's step; ``most`` are the steps after which nobody looks for the target any more, and
    ``look`` the steps between two looks (a round, where that is longer).
    """

    task: str = "fashion_mnist"
    width: int = 200
    batch: int = 32
    target: float = 0.40
    most: int = 4000
    look: int = 16
    seed: int = 0

    @property
    def overrides(self) -> list[str]:
        """The same problem for ``fedlearn run``."""
        return [f"task={self.task}", "model=mlp", f"model.width={self.width}", "heterogeneity=iid",
                f"clients={HOSTS}", "cohort=null", f"local.batch_size={self.batch}", f"seed={self.seed}"]


@dataclass(frozen=True)
class Method:
    """A method with ``steps`` local steps between two synchronisations.

    ``algorithm`` is fedlearn's name for it, or ``DDP``. The search of its step size begins at ``lr``, or is that of
    the method ``like``, which differs only in how it is summed up. ``label`` stands in the picture, if it is drawn.
    """

    name: str
    algorithm: str
    steps: int
    lr: float
    reduce: str = "exact"
    wire: str = "float32"
    like: str = ""
    label: str = ""

    def to_json(self, lr: float) -> dict[str, Any]:
        """Return what a host must know of it."""
        return {"algorithm": self.algorithm, "steps": self.steps, "lr": lr, "reduce": self.reduce, "wire": self.wire}


def local_sgd(steps: int, reduce: str = "exact", wire: str = "float32") -> Method:
    """Return Local SGD with so many local steps, with one of the three ways to sum up."""
    name = f"Local SGD, K={steps}"
    if reduce == "exact":
        return Method(name, "fedavg", steps, 0.2, label=name)
    return Method(f"{name}, {SUMS[reduce, wire]}", "fedavg", steps, 0.2, reduce, wire, like=name)


SUMS = {("exact", "float32"): "exact sum", ("fast", "float32"): "float32 sum", ("fast", "bf16"): "bf16 sum"}
METHODS = (
    Method(DDP, DDP, 1, 0.2, label="PyTorch DDP, every step"),
    Method(f"{DDP}, bf16", DDP, 1, 0.2, wire="bf16", like=DDP),
    *(local_sgd(steps) for steps in (1, 4, 16, 64)),
    local_sgd(1, "fast", "bf16"),
    local_sgd(16, "fast"),
    local_sgd(16, "fast", "bf16"),
    Method("DiLoCo, K=64", "diloco", 64, 0.001, label="DiLoCo, K=64"),
    Method("Local AC-SA, K=16", "local_acsa", 16, 0.003, label="Local AC-SA, K=16"),
)


@dataclass(frozen=True)
class Plan:
    """A whole benchmark: every method on every network, ``passes`` times, the methods in turns.

    A method works to the target, or for ``limit`` seconds and at least ``least`` rounds; in the last of several passes
    for no less than the whole way, if that took at most ``whole`` seconds in those before. A synchronisation is timed
    in ``turns``. Machines that are busy with something else are waited for, ``patience`` seconds in all.
    """

    problem: Problem = Problem()
    methods: tuple[Method, ...] = METHODS
    mbits: tuple[float, ...] = (10, 50, 200, 1000)
    passes: int = 3
    limit: float = 4.0
    whole: float = 50.0
    least: int = 3
    turns: int = 3
    patience: float = 60.0

    def order(self, turn: int) -> list[Method]:
        """Return the methods in the order of one pass: each pass begins with another one, and goes the other way."""
        start = turn * len(self.methods) // max(1, self.passes)
        around = [*self.methods[start:], *self.methods[:start]]
        return around[::-1] if turn % 2 else around


QUICK = replace(Plan(), problem=replace(Problem(), target=0.60, most=1000), mbits=(10, 1000), passes=1, limit=2.0,
                least=2, turns=1, patience=0.0,
                methods=tuple(m for m in METHODS if m.name in (DDP, "Local SGD, K=16", "Local SGD, K=16, bf16 sum",
                                                               "Local SGD, K=64")))


def rounds_of(mbit: float) -> int:
    """Return how often a synchronisation is timed in one turn: more often where it is quick."""
    return max(4, min(20, round(mbit / 12)))
