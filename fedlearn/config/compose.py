"""Composing a configuration: YAML groups plus overrides from the command line, by Hydra's grammar.

Hydra chooses the files (``algorithm=scaffold``); values (``algorithm.lr=0.1``) are set here, so that a
misspelt key is answered with what is allowed instead of with Hydra's several lines. The only module
that imports Hydra; it does so when called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlearn.config import catalog
from fedlearn.config.refine import with_norms
from fedlearn.config.trust import check, read
from fedlearn.errors import ConfigError, one_of

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

Groups = dict[str, dict[str, catalog.Option]]

# What a resumed run may change; everything else would make it another run.
RESUMABLE = ("rounds", "backend", "evaluate", "checkpoint", "stop", "check_resources", "tracking", "progress")


def compose(overrides: list[str], config_dir: Path | None = None, config_name: str = "run",
            base: Path | None = None) -> DictConfig:
    """Return the configuration that the overrides choose.

    ``config_dir`` is a user's folder with more options, ``base`` replaces the shipped folder.

    Raises:
        ConfigError: on a key, an option or a syntax that is not allowed, naming the nearest.
    """
    base = base or catalog.shipped()
    groups = catalog.options(config_dir, base)
    choices, values = _split(_parse(overrides), groups, base)
    cfg, chosen = _hydra(choices, base, config_dir, config_name)
    for override in values:
        _set(cfg, override, groups)
    _resolve(cfg)
    if "name" in cfg and cfg.name is None:
        cfg.name = f"{chosen.get('algorithm', 'run')}-{chosen.get('task', '')}".rstrip("-")
    return with_norms(cfg)


def recompose(text: str, overrides: list[str], config_dir: Path | None = None, base: Path | None = None,
              allowed: tuple[str, ...] = RESUMABLE, trust: bool = False) -> DictConfig:
    """Return a saved configuration (YAML text) with overrides of the ``allowed`` top-level keys.

    Without ``trust`` the text may have been written by anybody: what could run foreign code is refused, unless it
    was typed as an override. Nothing of it has been imported then.

    Raises:
        ConfigError: as ``compose`` does, for a key that a resumed run cannot change, and for what is not trusted.
    """
    from omegaconf import OmegaConf

    base = base or catalog.shipped()
    groups = catalog.options(config_dir, base)
    parsed = _parse(overrides)
    for override in parsed:
        if override.key_or_group.split(".")[0] not in allowed:
            raise ConfigError(override.key_or_group, override.input_line,
                              f"on resume, changes of {', '.join(allowed)}", "Start a new run instead.")
    cfg = read(text, trust)
    choices, values = _split(parsed, groups, base)
    if choices:
        fresh, _ = _hydra(choices, base, config_dir, "run")
        for override in choices:
            cfg[override.key_or_group] = fresh.get(override.key_or_group)
    OmegaConf.set_struct(cfg, True)
    for override in values:
        _set(cfg, override, groups)
    if not trust:
        check(cfg, {key for override in parsed for key in _typed(override)}, base)
    _resolve(cfg)
    return cfg


def to_yaml(cfg: DictConfig) -> str:
    """Return the configuration as YAML text, which ``recompose`` reads."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(cfg)


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain dicts and lists, for trackers."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg)  # type: ignore[return-value]


def _typed(override: Override) -> list[str]:
    """Return the keys whose values an override sets as a whole."""
    value = override.value()
    return [key for key, _ in _leaves(override.key_or_group, value)] if isinstance(value, dict) else [
        override.key_or_group]


def _resolve(cfg: DictConfig) -> None:
    """Replace interpolations by their values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(error.full_key or "configuration", _one_line(error).split(" full_key:")[0],
                          "interpolations of keys that exist") from None


def _parse(overrides: list[str]) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        try:
            override = parser.parse_overrides([text])[0]
        except HydraException:
            raise ConfigError("override", text, "key=value, group=option, +key=value or ~key",
                              "Quote what the shell or Hydra reads specially: 'key=\"a value\"'.") from None
        if override.is_sweep_override():
            raise ConfigError(override.key_or_group, text, "one value, or a list as key=[a,b]",
                              "Start one run per value.")
        parsed.append(override)
    return parsed


def _split(parsed: list[Override], groups: Groups, base: Path) -> tuple[list[Override], list[Override]]:
    """Return the overrides that choose options, checked, and those that set values."""
    choices, values = [], []
    for override in parsed:
        key = override.key_or_group
        if override.package is not None:
            raise ConfigError(key, override.input_line, "group=option without a package")
        value = override.value()
        if key not in groups or isinstance(value, dict):
            values.append(override)
            continue
        choices.append(override)
        if override.is_delete():
            continue
        if override.is_add() and (base / key).is_dir():
            raise ConfigError(key, override.input_line, f"{key}=<option> without +",
                              "The group has an option already.")
        if isinstance(value, list) and key not in catalog.SEVERAL:
            raise ConfigError(key, value, f"one option ({', '.join(catalog.SEVERAL)} take a list)")
        for name in value if isinstance(value, list) else [value]:
            if name not in groups[key]:
                found = name if isinstance(name, str) else str(name)
                raise ConfigError(key, name, one_of(groups[key], found),
                                  f"`fedlearn list {key}` describes them.")
    return choices, values


def _hydra(choices: list[Override], base: Path, config_dir: Path | None,
           config_name: str) -> tuple[DictConfig, dict[str, Any]]:
    """Return what Hydra composes of the chosen options, and group -> chosen option."""
    import hydra
    import yaml
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    lines = [str(override.input_line) for override in choices]
    for folder in catalog.extra(config_dir, base):
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"hydra.searchpath=['file://{quoted}']")
    try:
        with hydra.initialize_config_dir(str(base), version_base="1.3"):
            cfg = hydra.compose(config_name, lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        # A file of a group has the package of its group; other groups lie outside of it.
        said = re.sub(r"override '(\w+)@\w+\.\1'.*", r"override \1; write `override /\1@_global_.\1: ...`.",
                      _one_line(error))
        raise ConfigError("configuration", " ".join(lines), "YAML files that compose",
                          f"Hydra says: {said}") from None
    chosen = {str(group): name for group, name in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, chosen


def _set(cfg: DictConfig, override: Override, groups: Groups) -> None:
    """Set, add (+) or delete (~) the values that one override names.

    Raises:
        ConfigError: if there is no such key, or it cannot take the value.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        _apply(cfg, override, groups)
    except (OmegaConfBaseException, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(override.key_or_group, override.input_line, "a value that this key can take",
                          f"OmegaConf says: {_one_line(error)}.") from None


def _apply(cfg: DictConfig, override: Override, groups: Groups) -> None:
    from omegaconf import OmegaConf, open_dict

    key, value = override.key_or_group, override.value()
    if override.is_add() or override.is_force_add():
        if override.is_add() and OmegaConf.select(cfg, key) is not None:
            raise ConfigError(key, override.input_line, "+ for new keys only", f"Write {key}=...")
        OmegaConf.update(cfg, key, value, merge=True, force_add=True)
        return
    node = _find(cfg, key, groups)
    if override.is_delete():
        parent, _, leaf = key.rpartition(".")
        with open_dict(cfg):
            del (OmegaConf.select(cfg, parent) if parent else cfg)[leaf]
    elif not OmegaConf.is_dict(node):
        OmegaConf.update(cfg, key, value)
    elif isinstance(value, dict) and "_target_" in value:
        OmegaConf.update(cfg, key, value, merge=False)  # another class: the keys of the one before do not stay
    elif isinstance(value, dict):
        for path, leaf in _leaves(key, value):
            _find(cfg, path, groups)
            OmegaConf.update(cfg, path, leaf)
    else:
        raise ConfigError(key, value, f"its keys {', '.join(f'{key}.{k}' for k in _keys(node))}")


def _find(cfg: DictConfig, key: str, groups: Groups) -> Any:
    """Return what stands at a dotted key."""
    from omegaconf import OmegaConf

    node: Any = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth + 1])
        above = ".".join(parts[:depth])
        if not OmegaConf.is_dict(node):
            raise ConfigError(where, part, f"a plain value, as in {above}=...")
        if part not in node:
            names = set(_keys(node)) | (set(groups) if depth == 0 else set())
            allowed = one_of(names, part) if names else f"nothing below {above} as it is"
            raise ConfigError(where, part, allowed, _hint(cfg, parts, depth, groups))
        node = node._get_node(part)
        if OmegaConf.is_config(node) and (node._is_none() or node._is_missing()):
            node = None
    return node


def _hint(cfg: DictConfig, parts: list[str], depth: int, groups: Groups) -> str:
    """Say where the key would exist: chosen as an option, in another option, or elsewhere."""
    part, options = parts[depth], groups.get(parts[0], {})
    if depth == 0 and part in groups:
        return f"Add +{part}=<option>."
    if depth == 1 and part in options:
        return f"Choose it first: {parts[0]}={part}."
    if depth == 1:
        having = [name for name, option in options.items() if part in _top_keys(option.path)]
        if having:
            return f"It belongs to {', '.join(f'{parts[0]}={name}' for name in having)}."
    elsewhere = [path for path, _ in _leaves("", cfg) if path.endswith(f".{part}")]
    return f"There is {', '.join(elsewhere)}." if elsewhere else ""


def _top_keys(path: Path) -> Iterable[str]:
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else ()


def _keys(node: DictConfig) -> list[str]:
    return [str(key) for key in node if key != "_target_"]


def _leaves(prefix: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Walk nested mappings: (dotted key, value) of everything that is not a mapping."""
    items = tree.items() if isinstance(tree, dict) else tree.items_ex(resolve=False)
    for name, value in items:
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict) or (hasattr(value, "items_ex") and value is not None):
            yield from _leaves(key, value)
        else:
            yield key, value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
