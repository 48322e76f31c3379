"""fedlearn as a contestant: the Python face, with a tracker that keeps the harness's pace."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed import studies
from benchmarks.speed.case import Case, build
from benchmarks.speed.pace import Pace


class Paced:
    """A tracker that reports every round to the harness and waits for the next."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def started(self, folder: Path | None, config: dict[str, Any]) -> None:
        """Nothing is to be said yet."""

    def round(self, line: dict[str, Any]) -> None:
        """Round 0 is the evaluation of the initial model: all is ready."""
        if line["round"] == 0:
            self.pace.ready("torch", "numpy", "fedlearn")
        else:  # the last round is followed by an evaluation, which no contestant's time includes
            self.pace.lap(excluded=line["seconds"].get("evaluate", 0.0))

    def finished(self, summary: dict[str, Any]) -> None:
        """Nothing more is to be said."""


def main() -> None:
    """Run the case in a folder and leave the final model in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("model", help="where the final weights go (.npy)")
    parser.add_argument("--algorithm", default="fedavg")
    parser.add_argument("--workers", type=int, default=1, help="torchrun ranks; 1: in process")
    parser.add_argument("--cohort", type=int, help="instead of the case's")
    parser.add_argument("--generated", type=int, metavar="CLIENTS", help="so many, made when asked for, not the case's")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of fedlearn.run")
    args = parser.parse_args()
    pace = Pace()
    import fedlearn
    from fedlearn.config.assemble import parts
    from fedlearn.config.compose import compose
    from fedlearn.data.store import ClientStore
    from fedlearn.vectors import load

    torch.set_num_threads(1)
    case = Case.open(args.folder)
    options = dict(text.split("=", 1) for text in args.option)
    if unknown := set(options) - set(inspect.signature(fedlearn.run).parameters):
        raise SystemExit(f"this version of fedlearn has no option {', '.join(sorted(unknown))}")
    backend = ["backend=inprocess"]
    if args.workers > 1:  # a rank that waits for its turn is not lost
        backend = ["backend=torchrun", f"backend.workers={args.workers}", "backend.timeout=3600"]
    made = parts(compose([*backend, f"algorithm={args.algorithm}", f"algorithm.lr={case.lr}", "local.epochs=1",
                          f"local.batch_size={case.batch}"]))
    model = build(case.about["model"], tuple(case.features.shape[1:]), case.about["classes"])
    load(model, torch.from_numpy(np.array(case.initial)))
    values = {key: {"true": True, "false": False}.get(value, value) for key, value in options.items()}
    store: Any = studies.generated(args.generated) if args.generated else ClientStore.open(args.folder)
    history = fedlearn.run(
        algorithm=made.algorithm, model=model, clients=store, test=(case.test_x, case.test_y),
        rounds=case.rounds, cohort=args.cohort or case.cohort, local=made.settings.local, backend=made.backend,
        seed=case.about["seed"], evaluate_every=0, evaluate_samples=1,  # all of them in the end
        checkpoint_every=0, progress="none", trackers=[Paced(pace)],
        **values)
    np.save(args.model, history.x.numpy())
    pace.final(history.final("test_accuracy"))


if __name__ == "__main__":
    main()
