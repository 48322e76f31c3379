"""The refined schedule: its shapes for known norms, and from one run to the next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import blobs
from scipy.ndimage import median_filter

import fedlearn
from fedlearn.cli import main
from fedlearn.config.compose import compose
from fedlearn.config.refine import norms_of
from fedlearn.errors import ConfigError
from fedlearn.modifiers.update_norm import UpdateNorm
from fedlearn.policies.refined import Refined, refine, smoothed
from fedlearn.tracking.run_folder import RunFolder

T = np.arange(1000)


def factors(norms: np.ndarray, **more: Any) -> np.ndarray:
    schedule = Refined(norms=tuple(norms.tolist()), **more)
    return np.array([schedule.factor(r, len(norms)) for r in range(len(norms))])


def test_constant_norms_give_linear_decay_exactly() -> None:
    assert np.abs(factors(np.full(1000, 3.7)) - (1 - T / 1000)).max() < 1e-15
    assert refine(np.full(1000, 3.7), 2.0)[-1] == 0


def test_norms_that_are_high_at_the_start_give_a_warm_up() -> None:
    found = factors(1 + 4 * np.exp(-T / 55))    # five times as high, for about a tenth of the run
    assert found[0] == pytest.approx(0.05, abs=0.002) and found.argmax() == 259 and found.max() == 1
    assert (np.diff(found[:260]) > 0).all() and (np.diff(found[259:]) < 0).all() and 0 < found[-1] < 0.002


def test_norms_that_rise_at_the_end_give_a_faster_decay() -> None:
    found = factors(1 + 2 * np.clip((T - 900) / 100, 0, 1))
    assert found[850] == pytest.approx(0.089, abs=0.001)     # linear: 0.15
    assert found.argmax() == 0 and (np.diff(found) < 0).all() and found[-1] > 0


def test_weights_are_those_of_the_paper() -> None:
    """Against a transcription, for SGD and for Adam."""
    norms = np.random.default_rng(0).lognormal(size=12)
    for power in (2.0, 1.0):
        w = np.array([*norms, norms[-1]]) ** -power
        expected = np.array([w[t] * sum(w[s] for s in range(t + 1, 13)) for t in range(12)])
        assert factors(norms, tau=0.0, power=power) == pytest.approx(expected / expected.max(), rel=1e-12)


@pytest.mark.parametrize(("rounds", "tau"), [(1000, 0.1), (57, 0.1), (30, 0.5), (9, 0.1), (5, 1.0)])
def test_the_filter_is_that_of_the_authors(rounds: int, tau: float) -> None:
    norms = np.random.default_rng(1).lognormal(size=rounds)
    width = 2 * (int(tau * rounds) // 2) + 1
    extended = np.pad(norms, (0, 2 * width), mode="symmetric")
    expected = median_filter(extended, size=width, mode="nearest")[:rounds] if width > 1 else norms
    assert smoothed(norms, tau).tolist() == expected.tolist()


def test_noise_of_single_norms_does_not_show() -> None:
    norms = np.ones(1000)
    norms[np.random.default_rng(2).choice(1000, 100, replace=False)] = 20
    assert np.abs(factors(norms) - (1 - T / 1000)).max() < 0.01
    assert np.abs(factors(norms, tau=0.0) - (1 - T / 1000)).max() > 0.5


def test_measured_norms_are_those_of_the_mean_upload() -> None:
    before = blobs().initial(0)
    measured = fedlearn.run(algorithm=fedlearn.FedAvg(server_lr=0.5), task=blobs(), rounds=1, progress="none",
                            modifiers={"n": UpdateNorm()})
    dx = (measured.x - before) / 0.5
    assert measured.final("update_l2") == pytest.approx(float(dx.norm()), rel=1e-5)
    assert measured.final("update_l1") == pytest.approx(float(dx.abs().sum()), rel=1e-5)
    plain = fedlearn.run(algorithm=fedlearn.FedAvg(server_lr=0.5), task=blobs(), rounds=1, progress="none")
    assert plain.sha256 == measured.sha256 and plain.metrics[1]["bytes_up"] == measured.metrics[1]["bytes_up"]
    with pytest.raises(ConfigError, match="upload: found 'dy'; allowed: dx"):
        fedlearn.run(algorithm=fedlearn.FedAvg(), task=blobs(), rounds=1, progress="none",
                     modifiers={"n": UpdateNorm("dy")})


SMALL = ["rounds=6", "clients=4", "cohort=null", "model=softmax", "progress=none", "checkpoint.every=2"]


def test_a_run_refines_another_and_no_longer_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = [*SMALL, f"runs={tmp_path}"]
    assert main(["run", *at, "name=first", "modifiers=[update_norm]"]) == 0
    first = RunFolder.open("first", tmp_path)
    norms = [line["update_l2"] for line in first.metrics()[1:]]
    assert norms_of(str(first.path)) == norms and min(norms) > 0
    assert main(["run", *at, "name=second", "schedule=refined", "schedule.run=first"]) == 0
    second = RunFolder.open("second", tmp_path)
    direct = fedlearn_run_sha(tmp_path, norms)
    shutil.rmtree(tmp_path / "first")
    for path in second.checkpoints.glob("round-*6"):
        shutil.rmtree(path)
    assert main(["resume", "second", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count(direct) >= 2     # of the run and of its resumption
    with pytest.raises(ConfigError, match="run: found 'first'"):
        compose([*at, "schedule=refined", "schedule.run=first"])


def fedlearn_run_sha(tmp_path: Path, norms: list[float]) -> str:
    from fedlearn.running.perform import perform

    cfg = compose([*SMALL, f"runs={tmp_path}", "name=direct", "schedule=refined", f"schedule.norms={norms}"])
    return perform(cfg)[1].sha256


@pytest.mark.parametrize(("overrides", "message"), [
    ([], "schedule.run: found 'first'; allowed: a run with modifiers=.update_norm"),
    (["modifiers=[update_norm]", "schedule=cosine"], "allowed: a run with schedule=constant"),
    (["modifiers=[update_norm]", "schedule.warmup=2"], "allowed: a run with schedule=constant schedule.warmup=0"),
])
def test_a_run_that_cannot_be_refined_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    assert main(["run", *SMALL, f"runs={tmp_path}", "name=first", *overrides]) == 0
    with pytest.raises(ConfigError, match=message):
        compose([f"runs={tmp_path}", "schedule=refined", "schedule.run=first"])


@pytest.mark.parametrize(("rounds", "given", "message"), [
    (3, {}, "schedule.run: found None; allowed: the folder of a finished run"),
    (3, {"norms": (1.0, 2.0)}, "rounds: found 3; allowed: 2, as the run had"),
    (2, {"norms": (1.0, 0.0)}, "schedule.norms: found 0.0; allowed: a number > 0"),
    (2, {"norms": (1.0, float("nan"))}, "schedule.norms: found nan"),
    (2, {"power": 0}, "schedule.power"), (2, {"tau": 1.5}, "schedule.tau"), (2, {"column": "l3"}, "schedule.column"),
    (2, {"warmup": 1}, "schedule.warmup: found 1; allowed: 0"),
])
def test_what_cannot_be_run_is_said_in_one_line(rounds: int, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        fedlearn.run(algorithm=fedlearn.FedAvg(), task=blobs(), rounds=rounds, schedule=Refined(**given),
                     progress="none")
    assert "\n" not in str(e.value)
