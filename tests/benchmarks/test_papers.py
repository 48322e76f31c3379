"""The machinery of the reproductions, and one of them from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.papers import __main__ as papers
from benchmarks.papers import paper, record
from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.tasks.quadratic import Quadratic

REPRODUCTIONS = ["R1a", "R1b", "R2a", "R2b", "R3a", "R3b", "R4a", "R4b", "R5a", "R5b", "R6", "R7a", "R7b", "R8", "R9",
                 "R10a", "R10b", "R10c"]


def test_every_reproduction_is_there_in_order() -> None:
    found = record.found()
    assert [name for name in found if name.startswith("R")] == REPRODUCTIONS
    for name, module in found.items():
        about = module.ABOUT
        assert about.id == name and about.claim.endswith(".") and len(about.paper) > 20, name
        assert module.__name__.rpartition(".")[2].startswith(name.lower()), name


def test_estimates_are_means_with_students_interval() -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    found = paper.estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=3.0, scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, low, high))
    assert str(paper.estimate([2.0, 2.0])) == "2"


def test_the_grid_is_searched_and_its_ends_are_reported() -> None:
    grid = [1.0, 2.0, 3.0]
    assert paper.tune(grid, lambda v: abs(v - 2)) == paper.Tuned(2.0, 0.0, False)
    assert paper.tune(grid, lambda v: v).edge and paper.tune(grid, lambda v: -v).edge


def test_what_diverges_counts_as_infinity() -> None:
    import torch

    task = Quadratic(dimension=4, sigma=0.0).build(4, 0, torch.float64)
    assert paper.train(FedAvg(lr=0.5), task, rounds=20, steps=2) < 50
    assert paper.train(FedAvg(lr=1e4), task, rounds=200, steps=5) == np.inf


@pytest.mark.slow
def test_a_reproduction_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["papers", "R4b", "--out", str(tmp_path / "papers")])
    assert papers.main() == 0
    said = capsys.readouterr().out
    assert "holds" in said and "falls short" not in said and "closed form" in said
    kept = json.loads((tmp_path / "papers" / "R4b.json").read_text())
    assert all(c["holds"] for c in kept["criteria"]) and len(kept["rows"]) == 9
    assert (tmp_path / "papers" / "R4b.png").stat().st_size > 10_000
    assert "## R4b" in (tmp_path / "papers.md").read_text()


def test_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["papers", "R99"])
    with pytest.raises(SystemExit):
        papers.main()
    assert "found 'R99'; allowed: " in capsys.readouterr().err
