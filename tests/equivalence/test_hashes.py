"""Placement and a restart elsewhere do not change the result: one SHA-256 for every row of the table.

The table over Fashion-MNIST as well is printed by ``make equivalence``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from benchmarks.equivalence import ALGORITHMS, BACKENDS, HALVES, TASKS, halves, whole
from fedlearn.config.compose import compose

RANKS = [name for name in BACKENDS if name.startswith("torchrun")]
ACTORS = [name for name in BACKENDS if name.startswith("ray")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory):
    """The hash of the undisturbed run in one process, by algorithm."""
    return cache(lambda algorithm: whole("digits", algorithm, "in process", tmp_path_factory.mktemp("runs")))


def test_the_table_is_the_promised_one():
    assert set(ALGORITHMS) >= {"fedavg", "scaffold", "fedadam"} and set(TASKS) == {"digits", "fashion_mnist"}
    assert len(RANKS) == 4 and len(ACTORS) == 3
    assert set(HALVES) == {"torchrun 2, then ray 2", "ray 3, then in process"}
    cfg = compose([*TASKS["digits"], "algorithm=scaffold"])
    assert cfg.cohort < cfg.clients


def test_hashes_tell_runs_apart(reference):
    assert len({reference(algorithm) for algorithm in ALGORITHMS}) == len(ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_restart_in_the_middle(algorithm: str, reference, tmp_path: Path):
    assert halves("digits", algorithm, "in process", "in process", tmp_path) == reference(algorithm)


@pytest.mark.torchrun
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("backend", RANKS)
def test_torchrun_ranks(algorithm: str, backend: str, reference, tmp_path: Path):
    assert whole("digits", algorithm, backend, tmp_path) == reference(algorithm)


@pytest.mark.torchrun
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_restart_from_ranks_to_one_process_and_back(algorithm: str, reference, tmp_path: Path):
    assert halves("digits", algorithm, "torchrun 2", "in process", tmp_path) == reference(algorithm)
    assert halves("digits", algorithm, "in process", "torchrun 3", tmp_path) == reference(algorithm)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("backend", ACTORS)
def test_ray_actors(algorithm: str, backend: str, reference, tmp_path: Path):
    assert whole("digits", algorithm, backend, tmp_path) == reference(algorithm)


@pytest.mark.ray
@pytest.mark.torchrun
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("place", HALVES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_restart_on_another_backend(algorithm: str, place: str, reference, tmp_path: Path):
    assert halves("digits", algorithm, *HALVES[place], tmp_path) == reference(algorithm)
