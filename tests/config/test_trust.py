"""A run folder that somebody else may have made: nothing of it is imported or called without --trust."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedlearn import cli
from fedlearn.config import catalog
from fedlearn.config.assemble import parts
from fedlearn.config.compose import compose, recompose, to_yaml
from fedlearn.errors import ConfigError

QUICK = ["rounds=2", "clients=4", "cohort=2", "local.steps=1", "progress=none"]
MINE = """
import pathlib
pathlib.Path("imported").touch()
from fedlearn.algorithms.fedavg import FedAvg
class Mine(FedAvg):
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a module that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def text(**changes: Any) -> str:
    """The configuration of a run, with other values at some dotted keys (``__`` for the dot)."""
    cfg = yaml.safe_load(to_yaml(compose(QUICK)))
    for path, value in changes.items():
        *above, leaf = path.split("__")
        node = cfg
        for name in above:
            node = node[name]
        node[leaf] = value
    return yaml.safe_dump(cfg)


def refused(given: str, *overrides: str) -> str:
    """Compose what was given; return the error."""
    with pytest.raises(ConfigError) as error:
        parts(recompose(given, list(overrides)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_shipped_option_may_be_given() -> None:
    every = {group: {name: {key: value for key, value in (yaml.safe_load(option.path.read_text()) or {}).items()
                            if key != "defaults"} for name, option in options.items()}
             for group, options in catalog.options().items()}
    text = yaml.safe_dump(every)
    assert text.count("_target_: fedlearn.") > 80
    recompose(text, [])


def test_torchs_own_classes_may_be_given() -> None:
    given = text(model={"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 10},
                 local__optimizer="torch.optim.SGD", server__optimizer="adam", backend__x=None)
    assert recompose(given, []).model._target_ == "torch.nn.Linear"
    recompose(text(backend={"_target_": "fedlearn.backends.ray.backend.RayActors", "address": "auto"}), [])


@pytest.mark.parametrize("target", [
    "os.system", "mine.Mine", "builtins.eval", "subprocess.Popen",
    "fedlearn.backends.ray.backend.Actor", "fedlearn.backends.parcel.unpack", "fedlearn.algorithms.fedavg.dataclass",
    "fedlearn.tracking.run_folder.Path", "fedlearn.cli.main", "fedlearn.algorithms.fedavg.FedAvg.__init__",
    "fedlearn.nothing.X", "torch.load", "torch.hub.load", "torch.nn.init.normal_", "torch.nn.functional.relu",
    "torch.nn.modules.module.OrderedDict", "torch.nn.utils.rnn.PackedSequence", "torch.optim.optimizer.defaultdict",
    "torch.nn", "torch.nn.mine.X", "torch.nn..Linear", ".mine.X", "mine", "", 3, None, ["mine.Mine"],
    {"a": "mine.Mine"},
], ids=str)
def test_other_targets_are_refused_and_not_imported(folder: Path, target: Any) -> None:
    message = refused(text(algorithm={"_target_": target, "command": "touch called", "lr": 0.1}))
    assert message.startswith(f"algorithm._target_: found {target!r}; allowed: classes of fedlearn's own options")
    assert message.endswith("Add --trust if this run folder is yours.")
    assert not (folder / "imported").exists() and "mine" not in sys.modules


@pytest.mark.parametrize(("key", "value"), [
    ("model", {"_target_": "torch.nn.Sequential", "inner": {"_target_": "mine.Mine"}}),
    ("pipeline", {"clip": {"_target_": "mine.Mine"}}),
    ("pipeline", {"list": [{"_target_": "mine.Mine"}]}),
    ("tracking", {"wandb": {"_target_": "fedlearn.tracking.wandb_sink.WandbTracker", "settings": None}}),
    ("local__optimizer", "mine.Mine"), ("server__optimizer", "os.system"),
    ("backend", {"_target_": "fedlearn.backends.ray.backend.RayActors", "address": "ray://elsewhere:10001"}),
    ("tracking", {"a.b": {"_target_": "mine.Mine"}}),
])
def test_what_else_could_run_foreign_code_is_refused(folder: Path, key: str, value: Any) -> None:
    assert "Add --trust if this run folder is yours." in refused(text(**{key: value}))
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(("given", "part"), [
    ("rounds: ${oc.env:HOME}", "the interpolation ${oc.env:HOME}"),
    ("name: '${name}'", "the interpolation ${name}"),
    ("a: ${hydra:runtime.cwd}", "the interpolation"),
    ("a: ${oc.create:{_target_: os.system}}", "the interpolation"),
    ("a: !!python/object/apply:os.system ['touch called']", "the tag tag:yaml.org,2002:python/object/apply:os.system"),
    ("a: !!python/name:os.system", "the tag"), ("a: !!binary aGk=", "the tag"), ("a: !mine x", "the tag !mine"),
    ("a: &x [1]\nb: [*x, *x]", "an alias or anchor"), ("a: {<<: {b: 1}}\nb: &c 3", "an alias or anchor"),
    ("a: [", "It cannot be read"), ("a: 1\na: 2", "It cannot be read"), ("--- 1\n--- 2", "It cannot be read"),
    ("[1, 2]", "a section with keys"), ("3: 4", "keys that are text"),
    ("cohort: ???", "cohort: found '???'; allowed: a value"),
    ("[" * 3000, "more than 50 deep"),
    ("- " * 3000, "more than 50 deep"),
    ("a: \x00", "It cannot be read"), ("a: \ud800", "It cannot be read"),
])
def test_more_than_plain_values_are_refused(folder: Path, given: str, part: str) -> None:
    assert part in refused(given)
    assert not (folder / "called").exists()


@pytest.mark.parametrize(("given", "key"), [
    ({"hydra": {"searchpath": ["file:///tmp"]}}, "hydra"), ({"defaults": [{"algorithm": "x"}]}, "defaults"),
    ({"_target_": "os.system"}, "_target_"), ({"local": {"_target_": "fedlearn.algorithms.fedavg.FedAvg"}}, "local"),
])
def test_keys_that_hydra_would_read_mean_nothing(given: dict, key: str) -> None:
    assert key in refused(yaml.safe_dump({**yaml.safe_load(text()), **given}))


def test_what_the_user_types_is_the_users_own(folder: Path) -> None:
    sys.path.append(str(folder))
    given = text(backend={"_target_": "mine.Mine"})
    assert recompose(given, ["backend=torchrun"]).backend._target_ == "fedlearn.backends.torchrun.backend.Torchrun"
    assert recompose(given, ["backend={_target_:mine.Own}"]).backend._target_ == "mine.Own"
    with pytest.raises(ConfigError, match="backend._target_: found 'mine.Mine'"):
        recompose(text(backend={"_target_": "mine.Mine", "workers": 1}), ["backend.workers=3"])
    with pytest.raises(ConfigError, match="backend._target_: found 'mine.Mine'"):
        recompose(text(backend={"_target_": "mine.Mine", "workers": 1}), ["backend={workers: 3}"])
    with pytest.raises(ConfigError, match="tracking.a.b: found 'a.b'; allowed: keys without a dot"):
        recompose(text(tracking={"a.b": {"_target_": "mine.Mine"}}), ["+tracking.a={b: 1}"])


def test_resume_and_show_take_trust(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "algorithm._target_=mine.Mine", *QUICK]) == 0
    sha256 = capsys.readouterr().out.split("sha256 ")[1].split()[0]
    (folder / "imported").unlink()
    for verb in ("resume", "show"):
        sys.modules.pop("mine")
        sys.path.remove(str(folder))
        assert cli.main([verb, "latest"]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: algorithm._target_: found 'mine.Mine'; allowed: ")
        assert message.endswith("Add --trust if this run folder is yours.\n") and message.count("\n") == 1
        assert not (folder / "imported").exists() and "mine" not in sys.modules and str(folder) not in sys.path
        assert cli.main([verb, "latest", "--trust"]) == 0
        (folder / "imported").unlink()
        assert sha256 in capsys.readouterr().out or verb == "show"
