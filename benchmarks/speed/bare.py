"""The yardstick: FedAvg as one writes it by hand in PyTorch, with torch.optim.SGD and nothing else."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.speed.case import Case
from benchmarks.speed.pace import Pace


def main() -> None:
    """Run the case in a folder and leave the final model in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("model", help="where the final weights go (.npy)")
    parser.add_argument("--whole", action="store_true", help="do not wait between rounds")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    pace = Pace(args.whole)
    torch.set_num_threads(args.threads)
    case = Case.open(args.folder)
    model = case.module()
    optimizer = torch.optim.SGD(model.parameters(), lr=case.lr)
    weights = list(model.parameters())
    server = [w.detach().clone() for w in weights]
    pace.ready("torch", "numpy")
    for r in range(case.rounds):
        total, samples = [torch.zeros_like(s) for s in server], 0
        for i in range(case.cohort):
            x, y = case.visit(r * case.cohort + i)
            with torch.no_grad():
                for w, s in zip(weights, server, strict=True):
                    w.copy_(s)
            for xs, ys in zip(x.split(case.batch), y.split(case.batch), strict=True):
                optimizer.zero_grad()
                cross_entropy(model(xs), ys).backward()
                optimizer.step()
            with torch.no_grad():
                for t, w, s in zip(total, weights, server, strict=True):
                    t.add_(w - s, alpha=len(y))
            samples += len(y)
        for s, t in zip(server, total, strict=True):
            s.add_(t, alpha=1 / samples)
        pace.lap()
    vector = torch.cat([s.reshape(-1) for s in server])
    np.save(args.model, vector.numpy())
    pace.final(case.accuracy_of(vector))


if __name__ == "__main__":
    main()
