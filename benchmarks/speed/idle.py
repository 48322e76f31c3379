"""A fedlearn round without local work: what remains is broadcasting, summing and updating [P] vectors."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.speed.ours import Paced
from benchmarks.speed.pace import Pace
from fedlearn.contracts import ServerAlgorithm, ServerState


@dataclass(frozen=True)
class Idle(ServerAlgorithm):
    """Averaging of clients that do nothing."""

    def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
        """Return y as it is; the oracle is never asked."""
        return y

    def server_update(self, s: Any, mean: Any, info: Any) -> Any:
        """Add the mean difference."""
        return ServerState(s.x + mean["dx"])


def main() -> None:
    """Run idle rounds at the harness's pace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("parameters", type=int)
    parser.add_argument("rounds", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("reduce")
    args = parser.parse_args()
    pace = Pace()
    import fedlearn
    from fedlearn.backends.inprocess import InProcess

    backend: Any = InProcess()
    if args.workers > 1:
        from fedlearn.backends.torchrun import Torchrun
        backend = Torchrun(workers=args.workers, timeout=3600.0)
    torch.set_num_threads(1)
    # P parameters with next to no data: two clients of one sample with one feature.
    model, labels = nn.Linear(1, args.parameters // 2), torch.zeros(1, dtype=torch.int64)
    fedlearn.run(algorithm=Idle(), model=model, clients=[(torch.zeros(1, 1), labels)] * 2, rounds=args.rounds,
                 backend=backend, reduce=args.reduce, evaluate_every=0, checkpoint_every=0, progress="none",
                 trackers=[Paced(pace)])
    pace.final(0.0)


if __name__ == "__main__":
    from benchmarks.speed import idle  # its classes must have a name that other processes can import

    idle.main()
