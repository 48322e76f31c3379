"""The catalog: groups, options and their descriptions, read from the files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.config import catalog
from fedlearn.errors import ConfigError


def test_options_have_a_description_and_a_citation(base: Path) -> None:
    groups = catalog.options(base=base)
    assert list(groups["algorithm"]) == ["dsgd", "fedavg", "fedprox"]
    option = groups["algorithm"]["fedavg"]
    assert (option.group, option.name) == ("algorithm", "fedavg")
    assert (option.about, option.cite) == ("FedAvg: averaging", "McMahan 2017")
    assert (groups["algorithm"]["fedprox"].cite, groups["model"]["none"].about) == ("", "None")


@pytest.mark.parametrize(("text", "expected"), [
    ("# @package _global_\n# About: this  [A 2020]\n", ("About: this", "A 2020")),
    ("# A list [1] in it\n", ("A list [1] in it", "")),
    ("lr: 1\n# late\n", ("", "")),
    ("", ("", "")),
])
def test_descriptions(tmp_path: Path, text: str, expected: tuple[str, str]) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert catalog.describe(tmp_path / "a.yaml") == expected


def test_traffic(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# A\n# Traffic: d down, 2d up\nlr: 1\n")
    (tmp_path / "b.yaml").write_text("# A\nlr: 1\n")
    assert [catalog.traffic(tmp_path / name) for name in ("a.yaml", "b.yaml")] == ["d down, 2d up", ""]


def test_groups_are_found_in_the_singular_and_the_plural(base: Path) -> None:
    groups = catalog.options(base=base)
    assert [catalog.group_named(word, groups) for word in ("algorithm", "algorithms", "tasks")] == \
        ["algorithm", "algorithm", "task"]
    with pytest.raises(ConfigError, match=r"found 'algorithmus'; .*\(did you mean algorithm\?\)"):
        catalog.group_named("algorithmus", groups)


def test_the_shipped_folder_is_found() -> None:
    assert (catalog.shipped() / "algorithm" / "fedavg.yaml").is_file()
