"""Numbers with which no run makes sense: each is refused in one line that names the key, before any work."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fedlearn import cli
from fedlearn.config import catalog
from fedlearn.config.build import build_as, locate
from fedlearn.errors import ConfigError

SMALL = ["task=quadratic", "model=none", "heterogeneity=natural", "clients=4", "cohort=null", "rounds=3",
         "progress=none"]


def classes() -> dict[str, type]:
    """Return the class of every shipped algorithm."""
    return {name: locate(yaml.safe_load(option.path.read_text())["_target_"], "algorithm")
            for name, option in catalog.options()["algorithm"].items()}


@pytest.mark.parametrize(("cls", "field"), [
    pytest.param(cls, field.name, id=f"{name}.{field.name}")
    for name, cls in classes().items() for field in fields(cls) if field.name in ("lr", "server_lr")])
@pytest.mark.parametrize("value", [0, -0.1, float("nan")])
def test_a_step_size_of_zero_or_below(cls: type, field: str, value: float) -> None:
    with pytest.raises(ConfigError) as e:
        build_as(cls, {field: value}, "algorithm")
    assert e.value.key == f"algorithm.{field}" and "> 0" in e.value.allowed and "\n" not in str(e.value)


@pytest.mark.parametrize(("overrides", "message"), [
    (["local.steps=0"], "local.steps: found 0; allowed: a number >= 1"),
    (["local.epochs=0"], "local.epochs: found 0; allowed: a number >= 1"),
    (["local.steps=-3"], "local.steps: found -3; allowed: a number >= 1"),
    (["local.steps=2", "local.epochs=1"], "local.steps: found 2; allowed: null while local.epochs is set"),
    (["local.batch_size=-1"], "local.batch_size: found -1; allowed: a number >= 0"),
    (["local.steps=2", "intervals=given", "intervals.each=[1,4,2]"],
     "intervals.each: found [1, 4, 2]; allowed: 3 numbers, one for each round, of at most 6 steps in all"),
    (["local.steps=2", "intervals=given", "intervals.each=[2,2]"], "intervals.each: found [2, 2]; allowed: 3 numbers"),
    (["local.steps=2", "intervals=given", "intervals.each=[0,1,2]"], "intervals.each: found 0; allowed: a number >= 1"),
    (["local.steps=1", "intervals=growing"], "intervals: found 'growing'; allowed: at most 1 rounds"),
    (["intervals=growing"], "local.steps: found None; allowed: a number of steps with intervals=GrowingIntervals"),
    (["local.steps=1", "modifiers=[norm_test]"], "local.steps: found 1; allowed: >= 2 with modifiers=[norm_test]"),
    (["local.batch_size=null", "modifiers=[norm_test]"], "local.batch_size: found None; allowed: a number of samples"),
    (["modifiers=[batch_scaling]", "local.batch_size=10"],
     "local.batch_size: found 10; allowed: modifiers.batch_scaling.batch = 20"),
    (["modifiers=[gradient_noise]", "modifiers.gradient_noise.eta=-1"],
     "modifiers.gradient_noise.eta: found -1.0; allowed: a number >= 0"),
    (["modifiers=[example_curriculum]"], "modifiers.example_curriculum: found 'ExampleCurriculum'"),
    (["sampling=temperature"], "weighting: found 'ratio'; allowed: ratio only with sampling="),
    (["sampling=temperature", "weighting=scheme1", "sampling.tau=0.5"], "sampling.tau: found 0.5; allowed: a number"),
    (["sampling=client_curriculum", "sampling.order=rand"], "sampling.order: found 'rand'; allowed: curr or anti."),
    (["schedule=refined"], "schedule.run: found None; allowed: the folder of a finished run"),
    (["schedule=refined", "schedule.run=nowhere"], "run: found 'nowhere'; allowed: a run folder"),
    (["schedule=refined", "schedule.norms=[1.0,2.0]"], "rounds: found 3; allowed: 2, as the run had"),
])
def test_what_cannot_be_run_is_one_line(overrides: list[str], message: str, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", *SMALL, *overrides]) == 2
    said = capsys.readouterr().err.splitlines()
    # A run may have said where its work runs before a plan is refused; what is wrong is one line.
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].removeprefix("error: ").startswith(message), said
