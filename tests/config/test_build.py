"""Nodes into objects: keys, types and ranges are checked, and named by their whole dotted key."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedlearn.config.build import build_as, build_node
from fedlearn.config.settings import RunSettings
from fedlearn.errors import ConfigError


def node(target: str, **values: Any) -> Any:
    return OmegaConf.create({"_target_": f"standins.{target}", **values})


def test_a_dataclass_is_built_and_converted(standins: ModuleType) -> None:
    step = build_node(node("Step", lr=1, steps=3, widths=[5], mode="slow"), "algorithm")
    assert step == standins.Step(lr=1.0, steps=3, widths=(5,), mode=standins.Mode.slow)
    assert isinstance(step.lr, float)
    assert hash(step)
    assert build_node({"_target_": "standins.Step"}, "algorithm") == standins.Step()


def test_other_callables_are_built_by_their_signature(standins: ModuleType) -> None:
    net = build_node(node("Net", width=3, inner={"_target_": "standins.Step", "lr": 2.0}), "model")
    assert (net.width, net.inner) == (3, standins.Step(lr=2.0))
    assert build_node(node("free", x=[1, {"y": 2}]), "model") == {"x": [1, {"y": 2}]}


WRONG = [
    (("Step", {"lrr": 1}), "algorithm.lrr: found 'lrr'; allowed: one of lr, mode, nesterov, rule, steps, "
                           "widths (did you mean lr?)."),
    (("Step", {"lr": "abc"}), "algorithm.lr: found 'abc'; allowed: a number."),
    (("Step", {"lr": None}), "algorithm.lr: found None; allowed: a number."),
    (("Step", {"lr": [1]}), "algorithm.lr: found [1]; allowed: a number."),
    (("Step", {"steps": 1.5}), "algorithm.steps: found 1.5; allowed: a whole number or null."),
    (("Step", {"nesterov": "maybe"}), "algorithm.nesterov: found 'maybe'; allowed: true or false."),
    (("Step", {"widths": 3}), "algorithm.widths: found 3; allowed: a list, each entry a whole number."),
    (("Step", {"widths": ["a"]}), "algorithm.widths: found ['a']; allowed: a list, each entry a whole"),
    (("Step", {"mode": "warp"}), "algorithm.mode: found 'warp'; allowed: one of fast, slow."),
    (("Step", {"lr": -1}), "algorithm.lr: found -1.0; allowed: a number > 0."),
    (("Step", {"lr": "???"}), "algorithm.lr: found '???'; allowed: a value. Add algorithm.lr=..."),
    (("Dotted", {"lr": -1}), "algorithm.lr: found -1.0; allowed: a number > 0."),
    (("Needs", {}), "algorithm.path: found 'nothing'; allowed: text. It has no default."),
    (("Strange", {}), "algorithm: found 'Strange'; allowed: fields of type int, float, bool, str or Enum"),
    (("Net", {"widht": 3}), "algorithm.widht: found 'widht'; allowed: one of inner, width (did you mean"),
    (("strict", {}), "algorithm.a: found 'nothing'; allowed: a value. Add +algorithm.a=..."),
    (("Stepp", {}), "algorithm._target_: found 'standins.Stepp'; allowed: in standins, one of"),
    (("constant", {}), "algorithm._target_: found 'standins.constant'"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[f"{n}-{v}" for (n, v), _ in WRONG])
def test_wrong_nodes_get_one_line(standins: ModuleType, given: tuple[str, dict], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_node(node(given[0], **given[1]), "algorithm")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_targets_that_cannot_be_imported() -> None:
    for target, message in [("nowhere.Net", "Python says: No module named 'nowhere'"), ("Net", "dotted path"),
                            ("fedlearn.nowhere.Net", "No module named 'fedlearn.nowhere'")]:
        with pytest.raises(ConfigError, match=message):
            build_node({"_target_": target}, "model")
    with pytest.raises(ConfigError, match=r"model._target_: found None"):
        build_node({}, "model")


SETTINGS = [
    ({"rounds": 0}, "rounds: found 0; allowed: a number >= 1."),
    ({"rounds": ""}, "rounds: found ''; allowed: a whole number."),
    ({"rounds": {"a": 1}}, "rounds: found {'a': 1}; allowed: a whole number."),
    ({"roundz": 3}, "(did you mean rounds?)"),
    ({"seed": -1}, "seed: found -1; allowed: a number >= 0."),
    ({"cohort": 30}, "cohort: found 30; allowed: 1 to 20, the number of clients, or null for all."),
    ({"cohort": 0}, "cohort: found 0; allowed: a number >= 1."),
    ({"clients": 0}, "clients: found 0; allowed: a number >= 1."),
    ({"dtype": "float16"}, "dtype: found 'float16'; allowed: one of float32, float64"),
    ({"reduce": "exakt"}, "reduce: found 'exakt'; allowed: one of exact, fast (did you mean exact?)."),
    ({"progress": "loud"}, "progress: found 'loud'; allowed: one of auto, bar, none, plain."),
    ({"name": "a/b"}, "name: found 'a/b'; allowed: letters, digits"),
    ({"name": ".."}, "name: found '..'; allowed: letters, digits"),
    ({"local": {"steps": 2, "epochs": 1}}, "local.steps: found 2; allowed: null while local.epochs is set."),
    ({"local": {"batch": 2}}, "local.batch: found 'batch'; allowed: one of batch_size"),
    ({"local": 3}, "local: found 3; allowed: a section with keys."),
    ({"checkpoint": {"keep": 0}}, "checkpoint.keep: found 0; allowed: a number >= 1."),
    ({"evaluate": {"every": "often"}}, "evaluate.every: found 'often'; allowed: a whole number."),
]


@pytest.mark.parametrize(("values", "message"), SETTINGS, ids=[str(v) for v, _ in SETTINGS])
def test_wrong_settings_get_one_line(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_as(RunSettings, values)
    assert message in str(caught.value)
