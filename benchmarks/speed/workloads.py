"""The workloads, and the folders that all contestants read: prepared once, with fedlearn's keyed streams."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("FEDLEARN_BENCH") or Path.home() / ".cache" / "fedlearn" / "bench")
FORMAT = 1  # of the folders; raise it when what is written changes


@dataclass(frozen=True)
class Workload:
    """One problem; ``rounds`` are timed after ``warmup`` others.

    ``model`` is as in ``case.build``. ``whole`` times whole processes, ``rounds`` times repeated,
    instead of rounds.
    """

    name: str
    about: str
    task: str
    model: tuple[str | int, ...]
    clients: int
    cohort: int
    lr: float
    rounds: int
    warmup: int
    batch: int = 20
    seed: int = 0
    whole: bool = False

    @property
    def overrides(self) -> list[str]:
        """The same problem for ``fedlearn run``."""
        kind, *sizes = self.model
        keys = {"softmax": (), "mlp": ("width",), "cnn": ("channels", "hidden")}[str(kind)]
        return [f"task={self.task}", f"model={kind}", *(f"model.{k}={v}" for k, v in zip(keys, sizes, strict=True)),
                "heterogeneity=dirichlet", "heterogeneity.alpha=0.3", "min_samples=10", f"clients={self.clients}",
                f"cohort={self.cohort}", f"rounds={self.rounds + self.warmup}", "local.epochs=1",
                f"local.batch_size={self.batch}", f"algorithm.lr={self.lr}", f"seed={self.seed}"]


FASHION = "Fashion-MNIST over {} clients (Dirichlet 0.3, at least 10 samples), cohort {}, 1 epoch, batch 20, lr 0.05"
WORKLOADS = {w.name: w for w in (
    Workload("W1L", f"softmax regression (7,850 parameters), {FASHION.format('1,000', 50)}", "fashion_mnist",
             ("softmax",), 1000, 50, 0.05, rounds=20, warmup=3),
    Workload("W1M", f"MLP 784-200-10 (159,010 parameters), {FASHION.format('1,000', 50)}", "fashion_mnist",
             ("mlp", 200), 1000, 50, 0.05, rounds=20, warmup=3),
    Workload("W2", f"the CNN of McMahan et al. (1,663,370 parameters), {FASHION.format('100', 10)}", "fashion_mnist",
             ("cnn", 32, 512), 100, 10, 0.05, rounds=4, warmup=1),
    Workload("W3", "the whole process, from the shell to its end: digits, MLP 64-64-10, 10 clients (Dirichlet 0.3), "
             "all of them in each of 20 rounds, 1 epoch, batch 20, lr 0.1", "digits",
             ("mlp", 64), 10, 10, 0.1, rounds=20, warmup=0, whole=True))}


def quick(workload: Workload) -> Workload:
    """Return a toy version, for a smoke test: digits, a few clients, one round."""
    model = {"softmax": ("softmax",), "mlp": ("mlp", 8), "cnn": ("cnn", 2, 8)}[str(workload.model[0])]
    return replace(workload, about=f"TOY of {workload.about}", task="digits", model=model, clients=8, cohort=3,
                   rounds=1, warmup=1 - workload.whole)


def prepare(workload: Workload) -> Path:
    """Return the folder of a workload, made on the first call.

    Raises:
        fedlearn.errors.DataError: if the data set is not on this machine.
    """
    key = sha256(json.dumps([FORMAT, asdict(workload)]).encode()).hexdigest()[:12]
    folder = CACHE / f"{workload.name}-{key}"
    if folder.is_dir():
        return folder
    from fedlearn.config.assemble import parts, split, task_of
    from fedlearn.config.compose import compose
    from fedlearn.seeds import generator

    made = parts(compose(workload.overrides))
    raw, store = split(made)
    task = task_of(made)
    cohorts, order, starts = [], [], [0]
    for r in range(workload.rounds + workload.warmup):
        ids, _ = made.sampling.cohort(store.sizes, workload.cohort, generator(workload.seed, "sampling", r), r)
        cohorts.append(ids)
        for m in ids:
            draws = task.draws(int(m), generator(workload.seed, "local", r, int(m)), made.settings.local)
            order += [np.asarray(draw, dtype=np.int32) for draw in draws]
            starts.append(starts[-1] + sum(len(draw) for draw in draws))
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    store.save(part)
    arrays = {"test_x": raw.test_x.numpy(), "test_y": raw.test_y.numpy(),
              "initial": task.initial(workload.seed).numpy(), "cohorts": np.stack(cohorts),
              "order": np.concatenate(order), "starts": np.array(starts)}
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", array)
    describe(part, workload.model, raw.classes, workload.batch, workload.lr, workload.seed)
    try:
        part.rename(folder)
    except OSError:  # somebody else was faster
        shutil.rmtree(part)
    return folder


def describe(folder: Path, model: tuple[str | int, ...], classes: int, batch: int, lr: float, seed: int) -> None:
    """Write what a case holds besides its arrays."""
    about = {"model": model, "classes": classes, "batch": batch, "lr": lr, "seed": seed}
    (folder / "case.json").write_text(json.dumps(about))
