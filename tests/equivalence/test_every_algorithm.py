"""Every algorithm with rounds ends in the same bits in one process and on torchrun ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.config import catalog

ROOT = Path(__file__).parents[2]
CHOICES = ["task=digits", "model=mlp", "clients=6", "cohort=null", "heterogeneity=iid", "local.steps=3",
           "weighting=uniform", "rounds=3", "evaluate.every=0", "progress=none"]
SCRIPT = """
import json, os, sys
from fedlearn.config.assemble import experiment
from fedlearn.config.compose import compose
from fedlearn.running.execute import execute

found = {}
for run in json.loads(sys.argv[1]):
    found[run[0]] = execute(experiment(compose(run))).sha256
if os.environ.get("RANK", "0") == "0":
    print(json.dumps(found))
"""


def runs(backend: str) -> list[list[str]]:
    """Return the choices of a run of each algorithm but those that bring a protocol of their own."""
    rounds = [name for name, option in catalog.options()["algorithm"].items()
              if "override /protocol" not in option.path.read_text(encoding="utf-8")]
    return [[f"algorithm={name}", f"backend={backend}", *CHOICES,
             *(["sampling=one"] if name == "single_machine_sgd" else [])] for name in rounds]


def hashes(backend: str, script: Path, *launcher: str) -> dict[str, str]:
    """Return the final hash of every run on a backend, all runs in one start of its processes."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {
        "PYTHONPATH": str(ROOT), "TMPDIR": str(script.parent)}
    done = subprocess.run([sys.executable, *launcher, str(script), json.dumps(runs(backend))], env=environment,
                          capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.torchrun
def test_in_one_process_and_on_two_ranks_alike(tmp_path: Path) -> None:
    script = tmp_path / "runs.py"
    script.write_text(SCRIPT)
    here = hashes("inprocess", script)
    ranks = hashes("torchrun", script, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert len(here) > 25 and here == ranks
    assert len(set(here.values())) > 0.8 * len(here)    # algorithms differ, but for those that are one another's twins
