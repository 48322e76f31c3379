"""D7: Local SGD that stalls, minibatch SGD that starts slowly, and the two in turn, on Fashion-MNIST."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.minibatch_sgd import MinibatchSGD
from fedlearn.algorithms.two_stage import TwoStage
from fedlearn.data.store import ClientStore
from fedlearn.oracles.closed_form import LOGISTIC
from fedlearn.tasks.linear_model import LinearModelTask

from .clothes import CLASSES, draw_clothes
from .paper import About, Criterion, Result, estimate, trained

ABOUT = About("D7", "On Fashion-MNIST two stages, Local SGD first and minibatch SGD later, get the best of both where "
              "clients differ.",
              "After Patel et al., The Limits and Potentials of Local SGD, COLT 2024, Appendix E.6")
FINDING = (
    "A local start does not pay here. With few classes a client Local SGD stalls, and a second stage repairs that, but "
    "minibatch SGD is ahead of it after 10 rounds already: its best step is 4, four times the inverse of the curvature "
    "at 0. Where clients share samples and l2 is small, minibatch SGD does start behind, by less than expected; Local "
    "SGD with outer step 2 has not stalled after 60 rounds and is the best, so that switching costs. Two stages were "
    "tried with outer step 1 only. The second kind of clients, and minibatch steps above 4 (above 2 for the second "
    "stage), were added after a first run of the first kind over 80 rounds, in which two stages were behind, too.")
EACH, TUNING = 100, 1000
# The l2 term, and the share of a client's samples from its two classes (or one, dealt twice); the rest is from all.
CELLS = {"few classes, l2 0.01": (0.01, 1.0), "mixed, l2 0.001": (0.001, 0.5)}
K, ROUNDS, EARLY, BATCH = 16, 60, 10, 50            # the K batches of a round are whole passes
LOCAL, MINIBATCH = (0.1, 0.3), (4.0, 6.0)           # step sizes of the two stages, where the curvature is 1 at x = 0
# Eight trials for each.
TRIALS: dict[str, list[Any]] = {
    "Local SGD": [FedAvg(lr=lr, server_lr=outer) for lr, outer in product((0.01, 0.03, *LOCAL), (1.0, 2.0))],
    "minibatch SGD": [MinibatchSGD(lr=lr) for lr in (1.0, 2.0, 3.0, *MINIBATCH, 8.0, 12.0, 16.0)],
    "two stages, by rounds": [TwoStage(lr=lr, minibatch_lr=second, switch="fraction", at=at)
                              for lr, second, at in product(LOCAL, MINIBATCH, (0.25, 0.5))],
    "two stages, by drift": [TwoStage(lr=lr, minibatch_lr=second, switch="drift", at=at)
                             for lr, second, at in product(LOCAL, MINIBATCH, (0.03, 0.3))]}
STALLED = "Local SGD, step of stage 1"


@cache
def task(cell: str, seed: int) -> LinearModelTask:
    """Return tops against the rest; each class is dealt to two clients, but for what all share."""
    l2, share = CELLS[cell]
    rng = np.random.default_rng(seed)
    own = round(share * EACH)
    orders = [rng.permutation(CLASSES) for _ in range(2)]
    halves = [part.split(EACH, 1) for part in draw_clothes(2 * EACH, rng)]

    def samples(of: Any, m: int) -> torch.Tensor:
        dealt = [half[order[m], :own] for half, order in zip(of, orders, strict=True)]
        return torch.cat(dealt + [half[:, own + m::CLASSES].flatten(0, 1) for half in of])

    clients = [(samples(halves[0], m), samples(halves[1], m)) for m in range(CLASSES)]
    return LinearModelTask(ClientStore.from_clients(clients), LOGISTIC, l2, dtype=torch.float64)


def curve(algorithm: Any, cell: str, seed: int, every: int = 1) -> np.ndarray:
    """Return suboptimality and distance to the optimum [2, evaluations], infinity where the run diverged."""
    history = trained(algorithm, task(cell, seed), rounds=ROUNDS, steps=K, batch=BATCH, seed=seed, every=every)
    if history is None:
        return np.full((2, ROUNDS + 1), np.inf)
    found = [[line[f"test_{name}"] for line in history.metrics if f"test_{name}" in line]
             for name in ("suboptimality", "distance")]
    return np.nan_to_num(np.array(found), nan=np.inf, posinf=np.inf)


def reproduce(seeds: int) -> Result:
    """Tune each method by its suboptimality in the end, on a draw of its own, then compare on the seeds."""
    curves: dict[tuple[str, str], np.ndarray] = {}
    rows = []
    for cell in CELLS:
        chosen = {method: min(trials, key=lambda a, cell=cell: curve(a, cell, TUNING, 0)[0, -1])
                  for method, trials in TRIALS.items()}
        chosen[STALLED] = FedAvg(lr=chosen["two stages, by rounds"].lr)
        for method, algorithm in chosen.items():
            found = np.array([curve(algorithm, cell, seed) for seed in range(seeds)])
            curves[method, cell] = found[:, 0]
            rows.append((cell, method, told(algorithm), *(estimate(found[:, 0, r]) for r in (EARLY, ROUNDS)),
                         estimate(found[:, 1, -1])))
    columns = ("clients", "method", "tuned", f"F - F* after {EARLY} rounds", f"after {ROUNDS}", "|x - x*| at the end")
    criteria = [c for cell in CELLS for c in judge(curves, cell)]
    return Result(columns, rows, criteria, draw(curves), "" if all(c.holds for c in criteria) else FINDING)


def judge(curves: dict[tuple[str, str], np.ndarray], cell: str) -> list[Criterion]:
    """Return what theory leads one to expect, and whether it is so."""
    local, minibatch, stalled, stages = (curves[method, cell] for method in
                                         ("Local SGD", "minibatch SGD", STALLED, "two stages, by rounds"))
    stall = estimate(stalled[:, ROUNDS] / stalled[:, ROUNDS // 2])
    slow = estimate(minibatch[:, EARLY] / stalled[:, EARLY])
    gain = estimate(stages[:, ROUNDS] / np.minimum(local, minibatch)[:, ROUNDS])
    return [Criterion(f"{cell}: Local SGD with the step of stage 1 stalls: suboptimality after {ROUNDS} / after "
                      f"{ROUNDS // 2} rounds above 0.8", stall, stall.low > 0.8),
            Criterion(f"{cell}: after {EARLY} rounds minibatch SGD / that Local SGD above 2", slow, slow.low > 2),
            Criterion(f"{cell}: after {ROUNDS} rounds two stages / the better of Local and minibatch SGD below 1",
                      gain, gain.high < 1)]


def draw(curves: dict[tuple[str, str], np.ndarray]) -> Any:
    """Return what draws the suboptimality over the rounds, a line style for each kind of clients."""

    def on(axes: Any) -> None:
        for i, method in enumerate((*TRIALS, STALLED)):
            for cell, line in zip(CELLS, ("-", ":"), strict=True):
                axes.semilogy(curves[method, cell].mean(0), line, color=f"C{i}", label=f"{method}, {cell}")
        axes.set(xlabel=f"rounds of {K} gradients a client", ylabel="suboptimality")
        axes.legend(fontsize=6)

    return on


def told(algorithm: Any) -> str:
    """Return what was chosen for a method."""
    if isinstance(algorithm, TwoStage):
        return f"lr {algorithm.lr:g}, then {algorithm.minibatch_lr:g}, {algorithm.switch} {algorithm.at:g}"
    return f"lr {algorithm.lr:.3g}" + (f", outer {algorithm.server_lr:g}" if algorithm.server_lr != 1 else "")
