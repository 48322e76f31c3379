"""What the command line, the metrics and the ledger say of refused updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backends.unruly import poisoned
from problems import experiment

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.cli import main
from fedlearn.running.execute import checkpoint_of, execute
from fedlearn.tracking.report import refusals
from fedlearn.tracking.run_folder import RunFolder

RUN = ["run", "clients=6", "cohort=3", "rounds=2", "local.steps=1", "evaluate.every=0", "progress=none", "name=r",
       "stack=false"]


def event(round: int, client: int, why: str = "its upload has norm 3; more", **more: Any) -> dict[str, Any]:
    return {"event": "update refused", "round": round, "client": client, "why": why, **more}


def test_a_line_by_hand() -> None:
    assert refusals([]) == "" == refusals([{"event": "round void", "round": 1}])
    events = [event(1, 7), event(1, 4, "NaN"), event(2, 4), {"event": "resumed", "round": 1}, event(2, 4), event(3, 4)]
    assert refusals(events) == "refused updates: client 4: 3 (NaN), client 7: 1 (its upload has norm 3)"
    assert refusals([event(1, 4, times=5)]) == "refused updates: client 4: 5 (its upload has norm 3)"
    many = refusals([event(r, m) for m in range(14) for r in range(m + 1)], most=10)
    assert many.startswith("refused updates: client 13: 14 (") and many.endswith(", 4 more clients: 10")
    assert many.count("client ") == 10 and len(refusals([event(1, 1, "x" * 500)])) < 160


def test_the_run_and_show_end_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, f"runs={tmp_path}", "on_bad_update=refuse", "max_update_norm=1e-9"]) == 1
    assert "all 2 rounds were void" in capsys.readouterr().err
    assert main(["show", "r", "--runs", str(tmp_path)]) == 0
    assert "refused updates: client " in capsys.readouterr().out


@pytest.mark.parametrize("word", ["participation.least=9", "on_bad_update=never", "participation.over=3",
                                  "participation.foo=1", "max_update_norm=0"])
def test_a_wrong_key_is_named(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, f"runs={tmp_path}", word]) == 2
    assert capsys.readouterr().err.startswith(f"error: {word.split('=')[0]}: found ")


def test_metrics_and_ledger_of_a_run_that_was_resumed(tmp_path: Path) -> None:
    e = experiment(FedAvg(), 3, task=poisoned(3), on_bad_update="refuse", checkpoint_every=1)
    folder = RunFolder(tmp_path)
    execute(experiment(FedAvg(), 2, task=poisoned(3), on_bad_update="refuse", checkpoint_every=1), folder)
    history = execute(e, folder, start=checkpoint_of(e, folder))
    assert [line.get("refused") for line in history.metrics] == [None, 1, 1, 1]
    assert [line["clients"] for line in history.metrics[1:]] == [5, 5, 5]
    events = [x for x in folder.events() if x["event"] == "update refused"]
    assert [(x["round"], x["client"]) for x in events] == [(1, 3), (2, 3), (3, 3)]
    assert "NaN or infinite (the loss became so at local step " in events[0]["why"]
    assert refusals(folder.events()).startswith("refused updates: client 3: 3 (")
