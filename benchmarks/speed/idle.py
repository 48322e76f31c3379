"""A fedlearn round without local work: what remains is broadcasting, summing and updating [P] vectors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks.speed.ours import Paced
from benchmarks.speed.pace import Pace
from fedlearn.contracts import ServerAlgorithm, ServerState


@dataclass(frozen=True)
class Idle(ServerAlgorithm):
    """Averaging of clients that do nothing."""

    coordinatewise: ClassVar[bool] = True

    def local_step(self, y: Any, b: Any, c: Any, oracle: Any, info: Any) -> Any:
        """Return y as it is; the oracle is never asked."""
        return y

    def server_update(self, s: Any, mean: Any, info: Any) -> Any:
        """Add the mean difference."""
        return ServerState(s.x + mean["dx"])


class NoOracle:
    """An oracle that is entered and never asked."""

    stacks, calls = False, 0
    loss = torch.zeros(1)

    def describe(self) -> str:
        """Say what it is."""
        return "nothing"

    def room(self, batch: int) -> int:
        """Stacks are never made."""
        return 1

    def enter(self, clients: Sequence[int], draws: Any = None) -> None:
        """Nobody has data."""

    def at(self, draws: Sequence[Any]) -> None:
        """There are no mini-batches."""


@dataclass(frozen=True)
class NoTask:
    """A model of ``parameters`` and clients of one sample each, without data; it holds no vector [P] itself."""

    parameters: int
    clients: int = 2

    @cached_property
    def sizes(self) -> np.ndarray:
        """One sample each."""
        return np.ones(self.clients, dtype=np.int64)

    def initial(self, seed: int) -> torch.Tensor:
        """Return a vector that is not zero: zeros would take no memory."""
        return torch.full((self.parameters,), 0.5)

    def oracle(self, kind: str = "auto") -> NoOracle:
        """Return an oracle that is never asked."""
        return NoOracle()

    def draws(self, client: int, rng: Any, local: Any) -> Sequence[Any]:
        """Return one mini-batch of nothing."""
        return [None]

    def evaluate(self, x: torch.Tensor) -> dict[str, float]:
        """There is nothing to evaluate on."""
        return {}


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
        from fedlearn.backends.torchrun.backend import Torchrun
        backend = Torchrun(workers=args.workers, timeout=3600.0)
    torch.set_num_threads(1)
    fedlearn.run(algorithm=Idle(), task=NoTask(args.parameters), rounds=args.rounds, backend=backend,
                 reduce=args.reduce, evaluate_every=0, checkpoint_every=0, progress="none", trackers=[Paced(pace)])
    pace.final(0.0)


if __name__ == "__main__":
    from benchmarks.speed import idle  # its classes must have a name that other processes can import

    idle.main()
