"""What can be chosen: the groups of the config folder and their options, without importing Hydra or torch.

A group is a folder of YAML files, an option one file of it. The first line of a file is a comment that
says in one sentence what it is, with its citation in brackets at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import ConfigError, one_of

SEVERAL = ("pipeline", "modifiers", "tracking")  # groups of which several options may be chosen: pipeline=[clip,noise]


@dataclass(frozen=True, slots=True)
class Option:
    """One selectable YAML file; ``about`` is its description, ``cite`` its citation ("" without one).

    ``traffic`` says of an algorithm how much a client receives, sends and keeps per round, d being the model's size.
    """

    group: str
    name: str
    about: str
    cite: str
    path: Path
    traffic: str = ""


def shipped() -> Path:
    """Return the folder of the YAML files that belong to fedlearn, installed or in its repository.

    Raises:
        ConfigError: if there is none.
    """
    package = Path(__file__).resolve().parent.parent
    places = [package / "configs", package.parent / "configs"]
    for place in places:
        if (place / "run.yaml").is_file():
            return place
    raise ConfigError("configs", "no run.yaml", " or ".join(map(str, places)), "Install fedlearn again.")


def describe(path: Path) -> tuple[str, str]:
    """Return the description and the citation in the first comment of a YAML file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = line.strip()
            if text and not text.startswith("# @"):  # a Hydra header may come first
                break
        else:
            return "", ""
    if not text.startswith("#"):
        return "", ""
    about, bracket, cite = text.lstrip("# ").rpartition("[")
    if bracket and cite.endswith("]"):
        return about.strip(), cite[:-1]
    return text.lstrip("# "), ""


def traffic(path: Path) -> str:
    """Return what a YAML file says in its comment ``# Traffic: ...``; "" without one."""
    with path.open(encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("# Traffic:")), "")


def options(config_dir: Path | None = None, base: Path | None = None) -> dict[str, dict[str, Option]]:
    """Return group -> name -> option, of the shipped folder and of a user's own.

    Raises:
        ConfigError: if the user's folder is missing, or has an option that is shipped already.
    """
    base = base or shipped()
    found: dict[str, dict[str, Option]] = {}
    for folder in (base, *extra(config_dir, base)):
        for path in sorted(folder.glob("*/*.yaml")):
            group = found.setdefault(path.parent.name, {})
            if path.stem in group:
                raise ConfigError("--config-dir", str(path), "names that are not shipped", "Rename the file.")
            group[path.stem] = Option(path.parent.name, path.stem, *describe(path), path, traffic(path))
    return found


def extra(config_dir: Path | None, base: Path) -> list[Path]:
    """Return the user's config folder as a list of at most one.

    Raises:
        ConfigError: if it is not a folder.
    """
    if config_dir is None or config_dir.resolve() == base:
        return []
    if not config_dir.is_dir():
        raise ConfigError("--config-dir", str(config_dir), "a folder with <group>/<name>.yaml files")
    return [config_dir.resolve()]


def group_named(word: str, groups: dict[str, dict[str, Option]]) -> str:
    """Return the group that a word means, in the singular or the plural.

    Raises:
        ConfigError: if there is none.
    """
    for group in groups:
        if word in (group, group + "s"):
            return group
    raise ConfigError("list", word, one_of(groups, word))
