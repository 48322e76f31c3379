"""What the tests of the launch scripts share: running one as a user would, and what it left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
# What a launcher around these tests may have set.
FOREIGN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RAY_ADDRESS")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which the scripts use this Python, and torchrun leaves its logs in the test's folder."""
    (tmp_path / "tmp").mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return kept | {"PYTHON": sys.executable, "HOME": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def launch(tmp_path: Path, environ: dict[str, str]) -> Run:
    """A function that runs a script in an empty folder; variables are added to its environment."""
    def run(script: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(LAUNCH / script), *args], cwd=tmp_path, env=environ | variables, text=True,
                              capture_output=True, timeout=200)
    return run


@pytest.fixture
def quick() -> list[str]:
    """Overrides of a small run; rounds make it as long as need be."""
    return ["clients=6", "cohort=4", "model=softmax", "local.steps=2", "evaluate.every=0", "progress=plain"]


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., str]:
    """A function that returns the SHA-256 of a run's final model in one process."""
    def run(*overrides: str) -> str:
        from fedlearn.config.compose import compose
        from fedlearn.running.perform import perform

        return perform(compose([*overrides, f"runs={tmp_path / 'alone'}"]))[1].sha256
    return run


@pytest.fixture
def sha256() -> Callable[[str], list[str]]:
    """A function that returns the hashes that `fedlearn run` printed."""
    def find(said: str) -> list[str]:
        return [line.split()[-1] for line in said.splitlines() if line.startswith("model   sha256")]
    return find
