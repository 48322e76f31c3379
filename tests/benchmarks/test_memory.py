"""A coordinator holds at most three models and what the algorithm keeps beside the model, however many clients."""

from __future__ import annotations

import sys

import pytest

from benchmarks.memory import measure

PARAMETERS = 15_000_000
# Pieces of sums and of updates, and what allocators keep, do not grow with the model.
SLACK = 24e6 / (4 * PARAMETERS)  # less than half a model


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("place", "algorithm", "reduce"), [
    pytest.param("torchrun, dedicated", "fedadam", "exact", marks=pytest.mark.torchrun),
    pytest.param("torchrun, dedicated", "fedavg", "exact", marks=pytest.mark.torchrun),
    pytest.param("ray", "fedadam", "exact", marks=pytest.mark.ray)])
def test_three_models_and_the_algorithms_own_state(place: str, algorithm: str, reduce: str) -> None:
    found = measure(place, algorithm, reduce, PARAMETERS)
    assert 1.5 < found["models"] <= found["bar"] + SLACK
    assert found["shared"] <= 1 + 3 * SLACK  # the broadcast, and pieces under way
