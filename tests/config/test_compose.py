"""Overrides: what they choose and set, and the one line that answers a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.config.compose import compose, recompose, to_yaml
from fedlearn.errors import ConfigError


def test_defaults_name_the_run_and_resolve_interpolations(base: Path) -> None:
    cfg = compose([], base=base)
    assert cfg.algorithm == {"_target_": "standins.Step", "lr": 0.1}
    assert cfg.name == "fedavg-digits"
    assert compose(["name=mine"], base=base).folder == "mine"
    assert "hydra" not in cfg


def test_options_and_values(base: Path) -> None:
    overrides = ["algorithm=fedprox", "algorithm.mu=1", "rounds=3", "local={steps:4,epochs:null}"]
    cfg = compose(overrides, base=base)
    assert (cfg.algorithm.mu, cfg.rounds, cfg.local) == (1, 3, {"steps": 4, "epochs": None})
    assert cfg.name == "fedprox-digits"


def test_an_option_sets_defaults_of_other_groups_and_of_scalars(base: Path) -> None:
    assert compose(["task=images"], base=base).model.widths == [1]
    assert compose(["algorithm=dsgd"], base=base).cohort is None
    chosen = {"dsgd": "uniform", "fedavg": "ratio"}
    for algorithm, weighting in chosen.items():
        (base / "weighting" / "uniform.yaml").write_text("# Uniform\nname: uniform\n")
        (base / "weighting" / "ratio.yaml").write_text("# Ratio\nname: ratio\n")
        assert compose([f"algorithm={algorithm}"], base=base).weighting.name == weighting


def test_the_command_line_has_the_last_word(base: Path) -> None:
    assert "widths" not in compose(["task=images", "model=mlp"], base=base).model
    assert compose(["algorithm=dsgd", "cohort=7"], base=base).cohort == 7
    assert compose(["algorithm=dsgd", "protocol=synchronous"], base=base).cohort == 10


def test_stages_keep_the_order_in_which_they_are_asked_for(base: Path) -> None:
    cfg = compose(["pipeline=[noise,clip]", "pipeline.clip.norm=2"], base=base)
    assert list(cfg.pipeline) == ["noise", "clip"]
    assert cfg.pipeline.clip.norm == 2
    assert compose([], base=base).pipeline == {}


def test_adding_and_deleting(base: Path) -> None:
    assert compose(["+model.width=3"], base=base).model.width == 3
    assert "steps" not in compose(["~local.steps"], base=base).local


def test_a_folder_of_the_users_own(base: Path, tmp_path: Path) -> None:
    mine = tmp_path / "it's mine"
    (mine / "algorithm").mkdir(parents=True)
    (mine / "algorithm" / "own.yaml").write_text("# Own: mine\n_target_: standins.Step\nlr: 7\n")
    assert compose(["algorithm=own"], config_dir=mine, base=base).algorithm.lr == 7
    (mine / "algorithm" / "fedavg.yaml").write_text("# Shadow\n")
    with pytest.raises(ConfigError, match="names that are not shipped"):
        compose([], config_dir=mine, base=base)
    with pytest.raises(ConfigError, match="--config-dir: found '.*nowhere'; allowed: a folder"):
        compose([], config_dir=tmp_path / "nowhere", base=base)


WRONG = [
    (["algorithm=fedavgg"], "algorithm: found 'fedavgg'; allowed: one of dsgd, fedavg, fedprox "
                            "(did you mean fedavg?). `fedlearn list algorithm` describes them."),
    (["algorithm.lrr=1"], "algorithm.lrr: found 'lrr'; allowed: one of lr (did you mean lr?)."),
    (["algoritm=fedavg"], "algoritm: found 'algoritm'; allowed: one of algorithm, cohort, folder, local, "
                          "model, name, pipeline, protocol, rounds, task, weighting (did you mean algorithm"),
    (["lr=1"], "There is algorithm.lr."),
    (["algorithm.mu=1"], "algorithm.mu: found 'mu'; allowed: one of lr. It belongs to algorithm=fedprox."),
    (["pipeline.clip.norm=2"], "pipeline.clip: found 'clip'; allowed: nothing below pipeline as it is. "
                               "Choose it first: pipeline=clip."),
    (["algorithm=null"], "algorithm: found None; allowed: one of"),
    (["algorithm=[fedavg,dsgd]"], "allowed: one option (pipeline, modifiers, tracking take a list)."),
    (["+algorithm=dsgd"], "algorithm: found '+algorithm=dsgd'; allowed: algorithm=<option> without +."),
    (["algorithm@x=dsgd"], "algorithm: found 'algorithm@x=dsgd'; allowed: group=option without a package."),
    (["rounds"], "override: found 'rounds'; allowed: key=value, group=option, +key=value or ~key."),
    (["rounds=["], "override: found 'rounds=['; allowed: key=value"),
    (["rounds=1,2"], "rounds: found 'rounds=1,2'; allowed: one value, or a list as key=[a,b]. Start one run"),
    (["rounds.x=1"], "rounds.x: found 'x'; allowed: a plain value, as in rounds=...."),
    (["local=3"], "local: found 3; allowed: its keys local.steps, local.epochs."),
    (["local={stepz:3}"], "local.stepz: found 'stepz'; allowed: one of epochs, steps (did you mean steps?)."),
    (["+rounds=3"], "rounds: found '+rounds=3'; allowed: + for new keys only. Write rounds=..."),
    (["~nothing"], "nothing: found 'nothing'; allowed: one of algorithm"),
    (["hydra.run.dir=x"], "hydra: found 'hydra'; allowed: one of algorithm"),
    (["name=${nope}"], "Interpolation key 'nope' not found\"; allowed: interpolations of keys that exist."),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[w[0][0] for w in WRONG])
def test_wrong_overrides_get_one_line(base: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, base=base)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_compose_get_one_line(base: Path) -> None:
    (base / "algorithm" / "bad.yaml").write_text("# Bad\nlr: [1\n")
    (base / "algorithm" / "lost.yaml").write_text("# Lost\ndefaults:\n  - override /protocol: gossip\n")
    for name in ("bad", "lost"):
        with pytest.raises(ConfigError, match="configuration: .*Hydra says: ") as caught:
            compose([f"algorithm={name}"], base=base)
        assert "\n" not in str(caught.value)
    assert "protocol; write `override /protocol@_global_.protocol: ...`." in str(caught.value)


def test_recompose_changes_what_may_change(base: Path) -> None:
    text = to_yaml(compose(["algorithm=fedprox", "algorithm.mu=3"], base=base))
    assert to_yaml(recompose(text, [], base=base, trust=True)) == text
    cfg = recompose(text, ["rounds=99"], base=base, trust=True)
    assert (cfg.rounds, cfg.algorithm.mu) == (99, 3)
    cfg = recompose(text, ["model=cnn", "model.widths=[2]"], base=base, allowed=("model",), trust=True)
    assert cfg.model.widths == [2]
    with pytest.raises(ConfigError, match="algorithm.mu: found .*; allowed: on resume, changes of"):
        recompose(text, ["algorithm.mu=1"], base=base)
    with pytest.raises(ConfigError, match="roundz"):
        recompose(text, ["roundz=1"], base=base)
