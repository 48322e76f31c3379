"""How fedlearn's round time grows: with the population, with the cohort, and what synchronising costs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.speed.contestants import ours
from benchmarks.speed.race import Contestant
from benchmarks.speed.workloads import describe

SAMPLES, FEATURES, CLASSES, COHORT, BATCH = 10, 16, 10, 50, 2
POPULATIONS = (100, 1_000, 10_000, 100_000, 1_000_000)
COHORTS = (10, 20, 50, 100, 200, 500)
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
RAW = "raw gloo all_reduce"


def population(scratch: Path, rounds: int, sizes: tuple[int, ...] = POPULATIONS) -> list[Contestant]:
    """Return fedlearn on populations of several sizes, the same cohort and the same work per client."""
    return [replace(ours(), name=f"{n:,} clients", folder=_population(scratch / f"population-{n}", n, rounds))
            for n in sizes]


def _population(folder: Path, clients: int, rounds: int) -> Path:
    """Write a synthetic store of small clients, in pieces, so that nothing of its size is held in memory."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(clients)
    rows, piece = clients * SAMPLES, 1 << 18
    x = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (rows, FEATURES))
    y = np.lib.format.open_memmap(folder / "labels.npy", "w+", np.int64, (rows,))
    for start in range(0, rows, piece):
        stop = min(start + piece, rows)
        y[start:stop] = rng.integers(CLASSES, size=stop - start)
        x[start:stop] = rng.standard_normal((stop - start, FEATURES), dtype=np.float32)
        x[start:stop, 0] += y[start:stop]
    x.flush()
    y.flush()
    parameters = FEATURES * 64 + 64 + 64 * CLASSES + CLASSES
    arrays = {"offsets": np.arange(0, rows + 1, SAMPLES), "test_x": np.array(x[:100]), "test_y": np.array(y[:100]),
              "initial": 0.1 * rng.standard_normal(parameters, dtype=np.float32),
              "cohorts": np.zeros((rounds, min(COHORT, clients)), dtype=np.int64),  # fedlearn draws its own
              "order": np.zeros(0, dtype=np.int32), "starts": np.zeros(1, dtype=np.int64)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    describe(folder, ("mlp", 64), CLASSES, BATCH, 0.05, 0)
    return folder


def cohorts(sizes: tuple[int, ...] = COHORTS) -> list[Contestant]:
    """Return fedlearn with cohorts of several sizes."""
    return [replace(ours(cohort=str(n)), name=f"cohort {n}", same=False) for n in sizes]


def synchronisation(parameters: int, rounds: int) -> list[Contestant]:
    """Return rounds without local work on vectors [P], and what gloo alone takes for the same vector."""
    module = [sys.executable, "-m", "benchmarks.speed.idle", "{model}", str(parameters), str(rounds)]
    raw = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
           "benchmarks.speed.gloo", "{model}", str(parameters), str(rounds)]
    chosen = [Contestant(RAW, raw)]
    for reduce in ("exact", "fast"):
        chosen += [Contestant(f"fedlearn round, torchrun 2, reduce={reduce}", [*module, "2", reduce]),
                   Contestant(f"fedlearn round, in process, reduce={reduce}", [*module, "1", reduce])]
    return chosen
