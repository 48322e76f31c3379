"""Every shipped YAML file: described, buildable, and the same as its class."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fedlearn.config import catalog
from fedlearn.config.assemble import GROUPS, NAMED, parts
from fedlearn.config.build import build_as, locate
from fedlearn.config.compose import compose
from fedlearn.config.settings import RunSettings

BASE = catalog.shipped()
OPTIONS = [option for group in catalog.options().values() for option in group.values()]
# Options that are named presets of a class: their values differ from the defaults on purpose.
PRESETS = {"clock/lognormal", "clock/stragglers"}


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def nodes(option: catalog.Option) -> dict[str, dict]:
    """Return dotted key -> node of an option: itself, or each of its stages."""
    content = load(option.path)
    content.pop("defaults", None)
    if not content:
        return {}
    if "_target_" in content:
        return {option.group: content}
    return {f"{option.group}.{name}": node for name, node in content.items()}


def test_every_group_has_options_and_every_option_a_known_group() -> None:
    assert {option.group for option in OPTIONS} == {*GROUPS, *NAMED}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: f"{o.group}/{o.name}")
def test_an_option_is_described_equals_its_class_and_fits_its_group(option: catalog.Option) -> None:
    assert len(option.about) > 10, f"{option.path}: the first line must be a comment that says what it is"
    assert option.about[0] == option.about[0].upper()
    made = nodes(option)
    assert made or option.name == "none"
    for key, node in made.items():
        cls = locate(node.pop("_target_"), key)
        assert set(node) == {field.name for field in fields(cls) if field.init}
        built = build_as(cls, node, key)
        if f"{option.group}/{option.name}" not in PRESETS:
            assert built == cls()
        methods = GROUPS.get(option.group)
        assert not methods or any(callable(getattr(built, method, None)) for method in methods)


@pytest.mark.parametrize("option", [o for o in OPTIONS if "defaults" in load(o.path)],
                         ids=lambda o: f"{o.group}/{o.name}")
def test_an_option_with_defaults_of_other_groups_composes(option: catalog.Option) -> None:
    assert compose([f"{option.group}={option.name}"])[option.group]


def test_run_yaml_has_the_settings_with_their_defaults_and_a_comment_each() -> None:
    content = load(BASE / "run.yaml")
    groups = {next(iter(entry)) for entry in content.pop("defaults") if entry != "_self_"}
    assert groups == {*GROUPS, *NAMED}
    assert build_as(RunSettings, content) == RunSettings()
    assert list(content) == [field.name for field in fields(RunSettings)]
    lines = [line for line in (BASE / "run.yaml").read_text().splitlines() if ":" in line]
    assert all("#" in line for line in lines if not line.endswith(":")), "every key has a comment"


@pytest.mark.parametrize("algorithm", catalog.options().get("algorithm", {}))
def test_an_algorithm_alone_chooses_what_it_needs(algorithm: str) -> None:
    made = parts(compose([f"algorithm={algorithm}"]))
    assert isinstance(made.algorithm, made.protocol.kind)
    assert made.protocol.verb in made.backend.verbs


@pytest.mark.parametrize("task", catalog.options().get("task", {}))
def test_a_task_alone_chooses_what_it_needs(task: str) -> None:
    made = parts(compose([f"task={task}"]))
    assert (made.model is None) == (not hasattr(made.task, "load"))
