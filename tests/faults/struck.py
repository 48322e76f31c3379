"""A run with one fault, as a function and as a program: ``python struck.py BACKEND ALGORITHM KIND POINT FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from problems import blobs, experiment

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.backends.inprocess import InProcess
from fedlearn.backends.ray.backend import RayActors
from fedlearn.backends.torchrun.backend import Torchrun
from fedlearn.faults import Fault, Faults
from fedlearn.running.execute import History, checkpoint_of, execute
from fedlearn.tracking.run_folder import RunFolder

ALGORITHMS = {"fedavg": FedAvg(), "scaffold": Scaffold()}
BACKENDS = {"inprocess": InProcess(), "torchrun": Torchrun(timeout=60.0), "ray": RayActors(timeout=60.0)}
IMPATIENT = {"torchrun": Torchrun(timeout=4.0), "ray": RayActors(timeout=12.0)}   # where somebody will freeze
ROUNDS, STRUCK = 4, 2
TASK = blobs(features=20_000)    # 80,019 parameters: partial sums travel by themselves


def run(backend: str, algorithm: str, folder: Path, fault: Fault | None = None) -> History:
    """Run, or resume, in a folder, with a fault that strikes once."""
    place = (IMPATIENT if fault and fault.kind == "freeze" else BACKENDS).get(backend) or BACKENDS[backend]
    marks = folder / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    e = experiment(ALGORITHMS[algorithm], ROUNDS, task=TASK, cohort=5, backend=place, checkpoint_every=1,
                   evaluate_every=0, faults=Faults((fault,), marks) if fault else None)
    kept = RunFolder(folder / "run")
    with kept.claim():
        return execute(e, kept, start=checkpoint_of(e, kept))


if __name__ == "__main__":
    place, name, kind, point, where = sys.argv[1:]
    run(place, name, Path(where), Fault(kind, point, STRUCK, anywhere=place == "inprocess"))
