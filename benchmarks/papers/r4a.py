"""R4a: the two-direction instance on which local steps are worth nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.tasks.quadratic import QuadraticTask

from .paper import About, Criterion, Result, trained

ABOUT = About("R4a", "With two kinds of clients of rank one, no step sizes make Local GD faster than order 1/R.",
              "Patel et al., The Limits and Potentials of Local SGD, COLT 2024, Proposition 7")
EXPECTED = {4: 0.029, 16: 0.026, 64: 0.024, 256: 0.023}
K, INNER = 8, 0.25
CONDITIONS = np.geomspace(1.5, 8, 12)           # of F, times R: where the worst one lies
REACHES = np.linspace(1.2, 1.99, 30)            # step of the gradient descent that Local GD is, times H


def instance(r: int) -> tuple[QuadraticTask, list[torch.Tensor]]:
    """Return the instance for all conditions at once, as blocks of two coordinates, and the Hessian of each block.

    F_1 = 1/2 (x - x*)' A_1 (x - x*), A_1 = diag(1, 0), and F_2 with A_2 = v v', v = (a, (1 - a^2)^1/2). The
    eigenvalues of F's Hessian are (1 +- a) / 2; x0 - x* is the sum of its eigenvectors over 2^(1/2).
    """
    first, second, start, hessians = [], [], [], []
    for kappa in CONDITIONS * r:
        a = (kappa - 1) / (kappa + 1)
        v = torch.tensor([a, (1 - a**2) ** 0.5], dtype=torch.float64)
        first.append(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)))
        second.append(torch.outer(v, v))
        hessians.append((first[-1] + second[-1]) / 2)
        start.append(torch.linalg.eigh(hessians[-1]).eigenvectors.sum(1) / 2**0.5)
    A = torch.stack([torch.block_diag(*first), torch.block_diag(*second)])
    return QuadraticTask(A, torch.zeros(2, len(A[0]), dtype=torch.float64), torch.cat(start)), hessians


def reproduce(seeds: int) -> Result:
    """For each R and condition take the best step; report the worst condition. No randomness enters."""
    rows, criteria, found = [], [], {}
    for r, expected in EXPECTED.items():
        task, hessians = instance(r)
        errors = []
        for reach in REACHES:
            outer = reach / (1 - (1 - INNER) ** K)
            history = trained(FedAvg(lr=INNER, server_lr=outer), task, rounds=r, steps=K)
            assert history is not None
            blocks = history.x.view(-1, 2)
            errors.append([float(x @ h @ x) / 2 for x, h in zip(blocks, hessians, strict=True)])
        best = np.min(errors, axis=0)
        worst = int(best.argmax())
        found[r] = r * float(best[worst])
        inside = 0 < worst < len(CONDITIONS) - 1
        rows.append((r, expected, found[r], f"{CONDITIONS[worst]:.1f} R{'' if inside else ' (edge)'}"))
        criteria.append(Criterion(f"R err at R={r} in [0.02, 0.035]", f"{found[r]:.4f}", 0.02 <= found[r] <= 0.035))

    def draw(axes: Any) -> None:
        axes.loglog(list(found), [v / r for r, v in found.items()], "o-", label="best step, worst condition")
        axes.loglog(list(found), [0.025 / r for r in found], ":", label="0.025 / R")
        axes.set(xlabel="rounds R", ylabel="suboptimality")
        axes.legend()

    return Result(("R", "expected R err", "R err", "worst condition"), rows, criteria, draw)
