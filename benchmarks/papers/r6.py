"""R6: growing communication intervals need R = N rounds whatever T; one-shot averaging needs a smooth Hessian."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.policies.intervals import GivenIntervals, GrowingIntervals
from fedlearn.policies.schedule import InverseSteps

from .paper import About, Criterion, Estimate, Result, estimate, trained
from .separable import Separable, kink

ABOUT = About("R6", "N workers that communicate N times at growing intervals are about N times as good as one.",
              "Spiridonoff, Olshevsky, Paschalidis: Communication-efficient SGD: From Local SGD to One-Shot Averaging, "
              "NeurIPS 2021")
STEPS, SIGMA, START = 1000, 8.0, 2.0
REPEATS = {1: 1000, 20: 60, 64: 40}      # of one seed, one coordinate each
WORKERS, LONGER = (20, 64), (100, 1000, 8000)
EXPECTED = {"one worker": (".0415", ""), "every step": ("18.6", "65.6"), "growing, R = N": ("17.2", "49.8"),
            "constant, R = N": ("17.4", "56.8"), "constant, R = N^(3/4)": ("15.0", "34.6"),
            "constant, R = N^(1/2)": ("10.5", "20.6"), "one-shot": ("8.0", "10.8"),
            "Stich, H = (T/N)^(1/2)": ("", ""), "Haddadpour, H = (T^2/N)^(1/3)": ("", "")}


def smooth(z: torch.Tensor) -> torch.Tensor:
    """Return the derivative of a function with curvature 1 to 1.5 and a smooth Hessian."""
    return 1.25 * z + 0.25 * ((1 + z.square()).sqrt() - 1)


def smooth_value(z: torch.Tensor) -> torch.Tensor:
    """Return that function."""
    return 0.625 * z.square() + 0.25 * ((z * (1 + z.square()).sqrt() + torch.asinh(z)) / 2 - z)


KINK = kink(1.0, 2.0)   # x^2 / 2 for x <= 0, x^2 for x > 0


def error(workers: int, rounds: int, seed: int, steps: int = STEPS, growing: bool = False, f: Any = KINK,
          repeats: int | None = None, sigma: float = SIGMA) -> float:
    """Return the mean of F at the end over the repeats, after ``steps`` local steps cut into so many rounds."""
    repeats = repeats or REPEATS[workers]
    ones = torch.ones(repeats, dtype=torch.float64)
    task = Separable(workers, START * ones, sigma * ones, *f)
    # Where a = 2 T / (R (R + 1)) is below 1, some of the R synchronisations fall on one step, or on step 0.
    places = sorted({steps * r * (r + 1) // (rounds * (rounds + 1)) if growing else steps * r // rounds
                     for r in range(rounds + 1)} | {0})
    each = tuple(int(n) for n in np.diff(places))
    exact = growing and len(each) == rounds and steps % rounds == 0
    # lr = 1/2 and a = 4: the step sizes min(2 / (t + 1), 1/2).
    history = trained(FedAvg(lr=0.5), task, rounds=len(each), steps=steps // rounds if exact else max(each), seed=seed,
                      schedule=InverseSteps(a=4.0), intervals=GrowingIntervals() if exact else GivenIntervals(each))
    return float("inf") if history is None else history.final("test_suboptimality") / repeats


def rounds_of(rule: str, n: int) -> int:
    """Return how often a rule communicates."""
    return {"every step": STEPS, "growing, R = N": n, "constant, R = N": n,
            "constant, R = N^(3/4)": round(n**0.75), "constant, R = N^(1/2)": round(n**0.5), "one-shot": 1,
            "Stich, H = (T/N)^(1/2)": round(STEPS / (STEPS / n) ** 0.5),
            "Haddadpour, H = (T^2/N)^(1/3)": round(STEPS / (STEPS**2 / n) ** (1 / 3))}[rule]


def reproduce(seeds: int) -> Result:
    """Measure how many times as good as one worker the rules make N workers; step sizes are the paper's."""
    single = [error(1, 1, seed) for seed in range(seeds)]
    alone = float(np.mean(single))
    rules = [rule for rule in EXPECTED if rule != "one worker"]
    gain: dict[tuple[str, int], Estimate] = {}
    for n in WORKERS:
        for rule in rules:
            growing, rounds = rule.startswith("growing"), rounds_of(rule, n)
            # Averaging after every step is one worker with the mean of the noise.
            each = [error(1, 1, seed, sigma=SIGMA / n**0.5) if rounds == STEPS else
                    error(n, rounds, seed, growing=growing) for seed in range(seeds)]
            gain[rule, n] = estimate(alone / e for e in each)
    smooth_gain = {}
    for t in LONGER:
        curve: dict[str, Any] = {"steps": t, "f": (smooth, smooth_value)}
        one = float(np.mean([error(1, 1, seed, repeats=2000 if t < 8000 else 500, **curve) for seed in range(seeds)]))
        smooth_gain[t] = estimate(one / error(20, 1, seed, repeats={100: 4000, 1000: 400, 8000: 60}[t], **curve)
                                  for seed in range(seeds))
    rows: list[Any] = [("one worker: error", ".0415", estimate(single), "", "")]
    for rule in rules:
        few, many = EXPECTED[rule]
        rows.append((f"{rule}: times as good", few, gain[rule, 20], many, gain[rule, 64]))
    rows += [(f"one-shot, smooth Hessian, T={t}", expected, smooth_gain[t], "", "")
             for t, expected in zip(LONGER, ("18.7", "19.6", "20.1"), strict=True)]
    grown, shot = (gain[rule, 20] for rule in ("growing, R = N", "one-shot"))
    more = gain["one-shot", 64].mean / shot.mean
    criteria = [
        *(Criterion(f"growing intervals with R = N = {n} at least 0.6 N = {0.6 * n:g} times as good", g :=
                    gain["growing, R = N", n], g.mean >= 0.6 * n) for n in WORKERS),
        Criterion("one-shot averaging at a kink at most 0.6 N = 12 times as good at N=20", shot, shot.mean <= 12),
        Criterion("and at N=64 less than 1.6 times as good as at N=20", f"{more:.3g}", more < 1.6),
        *(Criterion(f"one-shot averaging with a smooth Hessian at least 0.85 N = 17 times as good, T={t}", g,
                    g.mean >= 17) for t, g in smooth_gain.items())]
    finding = (f"Constant intervals with as many rounds do as well as growing ones ({gain['constant, R = N', 20]} "
               f"against {grown} at N=20): what the growing ones gain is a logarithm of T in the analysis.")

    def draw(axes: Any) -> None:
        for n, marker in zip(WORKERS, "os", strict=True):
            drawn = sorted((rounds_of(rule, n), gain[rule, n].mean) for rule in rules if "growing" not in rule)
            axes.loglog(*zip(*drawn, strict=True), marker + "-", label=f"N={n}, constant intervals")
            axes.loglog([n], [gain["growing, R = N", n].mean], "k" + marker, fillstyle="none", markersize=10)
            axes.axhline(n, color="grey", linestyle=":")
        axes.plot([], [], "ko", fillstyle="none", label="growing intervals")
        axes.set(xlabel="rounds of communication R", ylabel="times as good as one worker")
        axes.legend()

    return Result(("rule, T=1000", "expected, N=20", "found", "expected, N=64", "found "), rows, criteria, draw,
                  finding)
