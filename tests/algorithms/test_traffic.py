"""What `fedlearn list algorithms` says of an algorithm's traffic is what a round of a real run measures."""

from __future__ import annotations

import re
from contextlib import closing

import pytest

from fedlearn.config import catalog
from fedlearn.config.assemble import experiment
from fedlearn.config.compose import compose
from fedlearn.running.execute import setup_of
from fedlearn.vectors import tree_flat

OPTIONS = catalog.options()["algorithm"]
AMOUNT = re.compile(r"(?:(\d*)(d)\b)?(?:(?: \+ )?(\d+))? (down|up|kept)")
SMALL = ["task=digits", "model=softmax", "clients=4", "cohort=null", "heterogeneity=iid", "local.steps=2",
         "weighting=uniform", "rounds=4"]
MEASURED = sorted(name for name, option in OPTIONS.items() if "neighbour" not in option.traffic)


def floats(said: str, d: int) -> dict[str, int]:
    """Return how many floats go down, up and stay, as a line of the catalog says."""
    amounts = {where: (int(times or 1) if model else 0) * d + int(more or 0)
               for part in said.split(", ") for times, model, more, where in AMOUNT.findall(part)}
    return {"down": 0, "up": 0, "kept": 0} | amounts


def test_reads_amounts() -> None:
    assert floats("2d down, d + 1 up, d kept", 10) == {"down": 20, "up": 11, "kept": 10}
    assert floats("d down, 3 up", 10) == {"down": 10, "up": 3, "kept": 0}
    assert floats("0 down, 0 up", 10) == {"down": 0, "up": 0, "kept": 0}


@pytest.mark.parametrize("name", OPTIONS)
def test_is_said_and_cited(name: str) -> None:
    assert OPTIONS[name].traffic and OPTIONS[name].cite and OPTIONS[name].about


@pytest.mark.parametrize("name", MEASURED)
def test_is_what_a_run_measures(name: str) -> None:
    cfg = compose([f"algorithm={name}", *SMALL])
    if "coded" in str(cfg.protocol):
        cfg = compose([f"algorithm={name}", *SMALL, "local.steps=1", "local.batch_size=null"])
    if name == "moon":
        cfg = compose([f"algorithm={name}", *SMALL, "model=mlp"])    # it needs two layers
    e = experiment(cfg)
    x0 = e.task.initial(e.seed)
    said = floats(OPTIONS[name].traffic, x0.numel())
    assert said["kept"] == sum(t.numel() for t in tree_flat(e.algorithm.client_init(x0)).values())
    with closing(e.backend.open(setup_of(e))) as workers:
        loop = e.protocol.start(e, workers)
        reports = [loop.round(r) for r in range(3)]
    for report in reports[1:]:
        assert report.bytes_up == sum(record.bytes_up for record in report.records)
        assert {record.bytes_up for record in report.records} == {4 * said["up"]}
    asked = len(reports[-1].cohort)
    assert reports[-1].bytes_down == 4 * said["down"] * asked
