"""The benchmark of slow networks: its arithmetic, its yardstick, its picture, and one toy run across three hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hosts import needs_hosts

from benchmarks.network import __main__ as command
from benchmarks.network import report, training
from benchmarks.network.plan import DDP, METHODS, Plan, Problem

TOY = Problem(task="digits", width=16, target=1.0, most=64)


def by_name(*names: str) -> tuple:
    """Return some methods."""
    return tuple(m for m in METHODS if m.name in names)


def test_what_is_missing_counts_as_the_mean_round_but_the_first() -> None:
    """A method that was stopped early is extrapolated, one that came to its end is not."""
    timed = {"rounds": 3, "seconds": 14.0, "first": 10.0}
    assert report.to_target(timed, 3) == 14
    assert report.to_target(timed, 10) == 14 + 7 * 2


def test_every_pass_has_every_method_in_an_order_of_its_own() -> None:
    """Whatever a place in the order brings about falls on others in the next pass."""
    plan = Plan()
    orders = [plan.order(turn) for turn in range(plan.passes)]
    assert all(sorted(m.name for m in order) == sorted(m.name for m in METHODS) for order in orders)
    assert len({order[0] for order in orders}) == plan.passes
    assert {m.like for m in METHODS if m.like} <= {m.name for m in METHODS}


@pytest.mark.parametrize(("best", "tried"), [(0.4, [0.2, 0.4, 0.8]),
                                             (0.05, [0.025, 0.05, 0.1, 0.2, 0.4])])
def test_a_step_size_is_searched_both_ways(monkeypatch: pytest.MonkeyPatch, best: float, tried: list[float]) -> None:
    """Wherever the best one lies, a worse one is looked at on either side; nobody runs longer than the best."""
    allowed = []

    def rounds_to(problem, method, task, most):
        allowed.append(most)
        needed = round(10 * max(best / method["lr"], method["lr"] / best) ** 2)
        return needed if needed <= most else None

    monkeypatch.setattr(training, "rounds_to", rounds_to)
    found = training.search(replace(TOY, most=1000), {"lr": 0.2, "steps": 1}, None)
    assert (found["lr"], found["rounds"]) == (best, 10)
    assert [lr for lr, _ in found["tried"]] == pytest.approx(tried)
    assert allowed == sorted(allowed, reverse=True) and allowed[-1] == 10


def test_the_yardstick_takes_the_steps_of_local_sgd_with_one_local_step() -> None:
    """Mean gradients of the same mini-batches: both are at the target after so many steps, fewer with longer ones."""
    task = training.task_for(TOY)
    steps = {}
    for lr in (0.1, 0.3):
        ours = training.rounds_to(TOY, by_name("Local SGD, K=1")[0].to_json(lr), task, TOY.most)
        theirs = training.rounds_to(TOY, by_name(DDP)[0].to_json(lr), task, TOY.most)
        assert ours == theirs
        steps[lr] = ours
    assert steps[0.3] is not None and steps[0.3] != steps[0.1]


def test_it_says_why_it_cannot_be_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without namespaces nothing is measured, nor written."""
    monkeypatch.setattr(command, "available", lambda: "they need root")
    monkeypatch.setattr("sys.argv", ["network"])
    assert command.main() == 2
    assert "skipped" in (said := capsys.readouterr().err) and "they need root" in said


@needs_hosts
@pytest.mark.slow
@pytest.mark.torchrun
def test_a_toy_run_across_three_hosts(tmp_path: Path, tidy: None) -> None:
    """Table and picture stand on the raw lines; fast and slow links end in the same bits; the links carry the model."""
    problem = replace(TOY, width=1000, target=1.5)      # a model so large that ranks of one host would share memory
    plan = Plan(problem, by_name(DDP, "Local SGD, K=4"), mbits=(100, 1000), passes=1, turns=1, patience=0.0)
    assert command.benchmark(plan, tmp_path, "a test") == 0
    records = report.load(tmp_path)
    parameters = next(r["parameters"] for r in records if r["kind"] == "ready")
    methods = {r["name"]: r for r in records if r["kind"] == "method"}
    cells = [r for r in records if r["kind"] == "cell"]
    assert len(cells) == 4 and all(r["rounds"] == r["of"] == methods[r["name"]]["target_at"] for r in cells)
    assert all(r["sha256"] == methods[r["name"]]["sha256"] and r["loss"] <= problem.target for r in cells)
    # The model goes to one of the others, which passes it on to the third.
    assert all(1 < r["sent"] / (4 * parameters) < 1.9 for r in cells if r["name"] != DDP)
    quickest = {(r["name"], r["mbit"]): min(r["laps"]) for r in records if r["kind"] == "sync"}
    least = 4 * 8 * parameters / 100e6 / 2  # seconds; half, for the first bytes pass at once
    assert len(quickest) == 8 and all(s > least for (_, mbit), s in quickest.items() if mbit == 100)
    text = (tmp_path / "network.md").read_text()
    assert text == report.write(tmp_path), "it needs nothing but the raw lines"
    assert text.count(" yes |") == 2 and "did not reach" not in text
    assert ElementTree.parse(tmp_path / "network.svg").getroot().tag.endswith("svg")
