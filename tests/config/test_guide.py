"""The guide names what can be chosen, and nothing that cannot."""

import re
from pathlib import Path

import pytest

from fedlearn.config import catalog

GUIDE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
OPTIONS = catalog.options()


@pytest.mark.parametrize("group", ["algorithm", "intervals", "schedule", "sampling", "modifiers"])
def test_the_tables_list_every_option_as_the_catalog_does(group: str) -> None:
    for name, option in OPTIONS[group].items():
        said = f"| `{name}` | {option.about} | {option.cite} |" + (f" {option.traffic} |" if option.traffic else "")
        assert name == "none" or said in GUIDE, f"docs/algorithms.md: {group}={name} is not listed as {said}"


@pytest.mark.parametrize(("group", "name"), re.findall(r"(\w+)=(\w+)", GUIDE))
def test_options_that_it_names_exist(group: str, name: str) -> None:
    assert group not in OPTIONS or name in OPTIONS[group]
