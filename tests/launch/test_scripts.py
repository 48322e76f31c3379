"""What all launch scripts have in common: a how-to on top, errors of one line, and nothing that ShellCheck minds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ["local.sh", "torchrun.sh", "ray_laptop.sh", "compose.sh"]
SCRIPTS = [f"launch/{name}" for name in [*PROGRAMS, "slurm.sbatch"]] + [".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_minds_nothing(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian: apt-get install shellcheck)")
    found = subprocess.run(["shellcheck", script], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.startswith("launch/")])
def test_a_script_can_be_run_and_says_on_top_how(script):
    lines = (ROOT / script).read_text().splitlines()
    assert os.access(ROOT / script, os.X_OK) and lines[0] == "#!/usr/bin/env bash"
    head = lines[1:next(i for i, line in enumerate(lines) if i and not line.startswith("#"))]
    assert any(script in line for line in head), "no example of how it is called"


@pytest.mark.parametrize("script", PROGRAMS)
def test_help_is_the_how_to(launch, script):
    said = launch(script, "--help")
    assert said.returncode == 0 and f"launch/{script}" in said.stdout and not said.stderr
    assert "set -euo" not in said.stdout and len(said.stdout.splitlines()) > 5


@pytest.mark.parametrize(("command", "parts"), [
    (["local.sh", "--rank", "2"], ["--rank;", "--ranks"]),
    (["local.sh", "--ranks", "two"], ["--ranks: found 'two'", "a whole number"]),
    (["ray_laptop.sh", "--actors"], ["--actors: found ''", "a whole number"]),
    (["torchrun.sh", "--host", "node1"], ["found no --nodes", "MIN:MAX"]),
    (["torchrun.sh", "--nodes", "3"], ["found no --host"]),
    (["torchrun.sh", "--host", "node1", "--nodes", "2-4"], ["--nodes: found '2-4'", "N or MIN:MAX"]),
    (["torchrun.sh", "--host", "node1", "--token", "absent"], ["--token: found 'absent'", "a file that can be read"]),
    (["torchrun.sh", "--host", "node1", "--wait", "1h"], ["--wait: found '1h'", "seconds from 1"]),
    (["torchrun.sh", "--host", "node1", "--launch", "a b"], ["--launch: found 'a b'"]),
    (["compose.sh", "start"], ["found 'start'", "build, up, run"]),
    (["compose.sh", "up", "swarm"], ["found 'swarm'", "torchrun, ray"]),
    (["compose.sh", "up", "ray", "--nodes", "0"], ["--nodes: found '0'", "from 1"]),
    (["compose.sh", "up", "torchrun", "--least", "3"], ["--least: found 3", "1 to 2"]),
    (["compose.sh", "up", "torchrun", "--data", "."], ["--data: found no /", "for every node, 1 to 2"]),
])
def test_a_wrong_word_is_answered_in_one_line(launch, command, parts):
    said = launch(*command)
    assert said.returncode == 2 and said.stderr.count("\n") == 1, said.stderr
    assert said.stderr.startswith("error: ") and all(part in said.stderr for part in [*parts, "--help helps"])


@pytest.mark.parametrize("command", [["local.sh", "--ranks", "2"],
                                     ["torchrun.sh", "--host", "localhost", "--nodes", "1"]])
def test_a_wrong_override_is_said_once_and_nothing_is_started(launch, command):
    said = launch(*command, "algorithm=fedavgg")
    assert said.returncode == 2 and said.stderr.count("\n") == 1 and "did you mean fedavg?" in said.stderr
    assert not said.stdout
