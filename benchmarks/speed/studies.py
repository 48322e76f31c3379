"""How fedlearn's round time grows: with the population, with the cohort, and what synchronising costs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.contestants import ours
from benchmarks.speed.race import ROOT, Contestant, environment
from benchmarks.speed.workloads import Workload, describe

SAMPLES, FEATURES, CLASSES, COHORT, BATCH = 10, 16, 10, 50, 2
POPULATIONS = (100, 1_000, 10_000, 100_000, 1_000_000)
BETWEEN = (1_000, 1_000_000)
MAPPED, SCAFFOLD = "memory-mapped", "SCAFFOLD"
COHORTS = (10, 20, 50, 100, 200, 500, 1000)
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
ROUNDS = {"population": 60}    # short ones, of which the ratios are to be told apart by a few percent
RAW = "raw gloo all_reduce"
PROFILED = {"W1L": 20, "W1M": 20, "W2": 3}    # rounds
NOT_THE_ROUND = ("evaluate", "checkpoint")


def population(scratch: Path, rounds: int, sizes: tuple[int, ...] = POPULATIONS) -> list[Contestant]:
    """Return fedlearn on populations of several sizes, the same cohort and the same work per client.

    Their samples are made when asked for, which isolates the framework; and, for ``BETWEEN`` or else the smallest and
    the largest, read from a memory-mapped store, where a larger population also means more pages to bring in.
    """
    few, many = BETWEEN if set(BETWEEN) <= set(sizes) else (sizes[0], sizes[-1])
    stores = {n: _population(scratch / f"population-{n}", n, rounds) for n in (few, many)}
    made = [replace(ours(generated=str(n)), name=of(n), folder=stores[few]) for n in sizes]
    stateful = [replace(ours(generated=str(n), algorithm="scaffold"), name=of(n, SCAFFOLD), folder=stores[few])
                for n in (few, many)]
    return made + [replace(ours(), name=of(n, MAPPED), folder=folder) for n, folder in stores.items()] + stateful


def of(clients: int, what: str = "") -> str:
    """Return the name of a contestant of the population study."""
    return f"{clients:,} clients" + (f", {what}" if what else "")


def generated(clients: int) -> Any:
    """Return a store of clients as in ``_population``, made when asked for."""
    from fedlearn.data.generated import GeneratedStore

    size = SAMPLES * (4 * FEATURES + 8)    # of a cohort and no more, lest a small population is made only once
    return GeneratedStore(np.full(clients, SAMPLES), _samples, held=COHORT * size)


def _samples(client: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y = rng.integers(CLASSES, size=SAMPLES)
    x = rng.standard_normal((SAMPLES, FEATURES), dtype=np.float32)
    x[:, 0] += y
    return x, y


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


def profile(workload: Workload, scratch: Path) -> dict[str, Any]:
    """Run a workload with ``profile=true`` in one process and return the share of its rounds that each phase took."""
    command = [sys.executable, "-m", "fedlearn", "run", *workload.overrides, "profile=true", "evaluate.every=0",
               "checkpoint.every=0", "progress=none", f"runs={scratch / 'runs'}", f"name=profile-{workload.name}"]
    done = subprocess.run(command, cwd=ROOT, env=environment(Contestant("", command)), capture_output=True, text=True)
    files = sorted((scratch / "runs").rglob("profile.json"), key=lambda path: path.stat().st_mtime)
    if done.returncode or not files:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200]
        return {"kind": "skipped", "name": workload.name, "reason": reason}
    phases = {p: about["seconds"] for p, about in json.loads(files[-1].read_text())["phases"].items()
              if about["calls"] and p not in NOT_THE_ROUND}
    total = sum(phases.values())
    return {"kind": "profile", "name": workload.name, "rounds": workload.rounds, "seconds": total,
            "shares": {p: s / total for p, s in phases.items()}}
