"""The profile of a run: all of the time, the same bits, and nothing left behind."""

from __future__ import annotations

import json

import pytest
from problems import blobs, experiment

from fedlearn.algorithms.fedavg import FedAvg
from fedlearn.algorithms.scaffold import Scaffold
from fedlearn.pipeline.clip import Clip
from fedlearn.reducers.exact import ExactSum
from fedlearn.running.execute import execute
from fedlearn.running.profile import PHASES, Profile
from fedlearn.tasks.supervised import SupervisedTask
from fedlearn.tracking.run_folder import RunFolder
from fedlearn.worker.worker import Worker


def test_a_profile_counts_every_phase_and_changes_no_bit(tmp_path):
    def new():
        return experiment(Scaffold(), rounds=3, cohort=4, pipeline={"clip": Clip(1.0)}, checkpoint_every=1)

    plain = execute(new(), RunFolder(tmp_path / "plain"))
    profile = Profile()
    watched = execute(new(), RunFolder(tmp_path / "watched"), profile=profile)
    assert watched.sha256 == plain.sha256
    calls = profile.calls
    assert all(calls[phase] and profile.seconds[phase] > 0 for phase in PHASES)
    assert calls["broadcast"] == calls["update"] == calls["digest"] == calls["workers"] == 3
    # Once more than for every upload and mean: what the others must send is found by a dry run.
    assert calls["pipeline"] == 3 * 4 + 3 + 1 and calls["evaluate"] == 4
    assert calls["reduce"] == 3 * (4 + 2)   # every upload is added; a mean carries first
    profile.write(tmp_path / "profile.json")
    written = json.loads((tmp_path / "profile.json").read_text())
    assert written["seconds"] == pytest.approx(sum(phase["seconds"] for phase in written["phases"].values()))
    assert sum(phase["share"] for phase in written["phases"].values()) == pytest.approx(1)
    assert "all of the run's work" in profile.table() and "local algorithm" in profile.table()


def test_a_profile_puts_everything_back_even_after_an_error(monkeypatch):
    before = {owner: dict(vars(owner)) for owner in (FedAvg, Worker, ExactSum, SupervisedTask)}
    monkeypatch.setattr(Worker, "reduce", lambda *args: 1 / 0)
    before[Worker] = dict(vars(Worker))
    with pytest.raises(ZeroDivisionError):
        execute(experiment(FedAvg(), task=blobs()), profile=Profile())
    assert {owner: dict(vars(owner)) for owner in before} == before
