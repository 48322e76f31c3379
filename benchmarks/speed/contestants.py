"""Who takes part: bare PyTorch, fedlearn with several algorithms, oracles and workers, and the peers."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from pathlib import Path

from benchmarks.speed.race import Contestant, Failed
from benchmarks.speed.workloads import Workload

PEERS = Path(os.environ.get("FEDLEARN_PEERS") or Path.home() / ".cache" / "fedlearn" / "peers")
BARE = "bare PyTorch"
MINE = "fedlearn"
CASE = ("{folder}", "{model}")


def ours(**choices: str) -> Contestant:
    """Return fedlearn with some choices: those of ``ours``, or any option of ``fedlearn.run``."""
    command = [sys.executable, "-m", "benchmarks.speed.ours", *CASE]
    for key, value in choices.items():
        own = key in ("algorithm", "workers", "cohort", "generated")
        command += [f"--{key}", value] if own else ["--option", f"{key}={value}"]
    words = {"workers": "torchrun {}", "algorithm": "{}"}
    name = ", ".join([MINE, *(words.get(key, key + "={}").format(value) for key, value in choices.items())])
    return Contestant(name, command, same=choices.get("algorithm", "fedavg") == "fedavg")


def bare(threads: int = 1) -> Contestant:
    """Return the yardstick."""
    return Contestant(BARE if threads == 1 else f"{BARE}, {threads} threads",
                      [sys.executable, "-m", "benchmarks.speed.bare", *CASE, "--threads", str(threads)],
                      env={"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})


def peer(name: str, label: str, *options: str, ranks: int = 1, freeze: bool = False) -> Contestant:
    """Return a peer in its own environment."""
    python = PEERS / name / "bin" / "python"
    module = f"benchmarks.peers.run_{name}"
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    missing = "" if python.exists() else f"no environment; benchmarks/peers/setup.sh {name} makes it"
    return Contestant(label, [str(python), *launcher, "-m", module, *CASE, *options], missing, freeze)


def for_rounds(workload: Workload, peers: bool, everything: bool) -> list[Contestant]:
    """Return the contestants of a workload that is timed round by round."""
    large = workload.model[0] == "cnn"
    chosen = [bare(), ours(), ours(workers="2")]
    if everything and large and "precision" in supported():
        chosen += [ours(precision="bf16"), ours(workers="2", precision="bf16")]
    if everything or not large:  # a round of the large one takes seconds
        chosen += [ours(oracle="autograd")]
        chosen += [ours(algorithm=name) for name in ("scaffold", "fedprox", "fedadam")]
    if everything:
        chosen += [bare(threads=2)]
    if peers:
        # Flower's driver polls while it waits; it is stopped while others have their turn.
        chosen += [peer("pfl", "pfl"), peer("pfl", "pfl, torchrun 2", ranks=2), peer("fedlab", "FedLab, slices"),
                   peer("fedlab", "FedLab, DataLoader", "--loader"), peer("flwr", "Flower, 2 actors", freeze=True)]
    return chosen


def supported() -> set[str]:
    """Return the options of this version's ``fedlearn.run``."""
    import fedlearn

    return set(inspect.signature(fedlearn.run).parameters)


def for_whole(workload: Workload, peers: bool, everything: bool, scratch: Path) -> list[Contestant]:
    """Return the contestants of a workload whose whole processes are timed."""
    yardstick = bare()
    chosen = [Contestant(BARE, [*yardstick.command, "--whole"], env=yardstick.env)]
    run = [sys.executable, "-m", "fedlearn", "run", *workload.overrides, "evaluate.every=0", "progress=none",
           f"runs={scratch / 'runs'}"]
    chosen.append(Contestant(MINE, run))
    if everything:
        chosen.append(Contestant(f"{MINE}, torchrun 2", [*run, "backend=torchrun"]))
    if peers:
        chosen += [peer("pfl", "pfl", "--whole"), peer("fedlab", "FedLab, slices", "--whole"),
                   peer("flwr", "Flower, 2 actors", "--whole")]
    return chosen


def read_whole(contestant: Contestant, model: Path, output: str) -> tuple[float, Path]:
    """Return the accuracy and the final weights that a whole process left: fedlearn in its run folder."""
    if not contestant.name.startswith(MINE):
        return json.loads(output.strip().splitlines()[-1])["accuracy"], model
    import numpy as np
    from safetensors.numpy import load_file

    found = re.search(r"^folder\s+(.+)$", output, re.MULTILINE)
    if not found:
        raise Failed("it named no run folder")
    folder = Path(found[1].strip())
    last = json.loads((folder / "metrics.jsonl").read_text().strip().splitlines()[-1])
    tensors = load_file(folder / "model.safetensors")
    # Layers of a Sequential are numbered, weights come before biases.
    names = sorted(tensors, key=lambda name: (int(name.split(".")[0]), name.endswith("bias")))
    np.save(model, np.concatenate([tensors[name].reshape(-1) for name in names]))
    return last["test_accuracy"], model
