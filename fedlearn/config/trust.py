"""What a configuration that came with a run folder may say: nothing that runs foreign code.

A folder may have been given to us. So, unless it is trusted, its configuration names only classes that the shipped
options name, and torch's own modules and optimisers, and each is looked for only where it must be: no other module is
imported. It holds plain values only: what fedlearn wrote has no interpolations (which read the environment), no tags,
and no aliases (of which a few lines unfold to gigabytes). What was typed on the command line is the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlearn.config import catalog
from fedlearn.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

TARGET = re.compile(r"^\s*_target_:\s*(fedlearn\.[\w.]+)\s*$", re.MULTILINE)
TORCH = {"torch.nn.": ("torch.nn", "Module"), "torch.optim.": ("torch.optim", "Optimizer")}
OPTIMIZERS = ("local.optimizer", "server.optimizer")    # keys that may name a class by its dotted path, too
LIBRARIES = ("torch.optim.", "pytorch_optimizer.")      # where those may come from
HERE = ("auto", "local")    # addresses of a Ray cluster on this machine
DEEPEST = 50    # levels of sections and lists
TAGS = (None, "!", "tag:yaml.org,2002:str")
ALLOWED = "classes of fedlearn's own options, and of torch.nn and torch.optim, in the configuration of a run folder"
HINT = "Add --trust if this run folder is yours."


def read(text: str, trust: bool) -> DictConfig:
    """Return the configuration that a YAML text holds.

    Raises:
        ConfigError: if it is none, or, without ``trust``, holds more than plain values.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if not trust:
            _check_plain(text)
        cfg = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError,
            AssertionError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError("config.yaml", text[:40], "the YAML text that fedlearn writes",
                          f"It cannot be read: {type(error).__name__}: {said}. Put it back from a copy.") from None
    if not OmegaConf.is_dict(cfg):
        raise ConfigError("config.yaml", text[:40], "a section with keys", "Put it back from a copy.")
    for key in cfg:
        if not isinstance(key, str):
            raise ConfigError("config.yaml", key, "keys that are text", "Put it back from a copy.")
    for missing in sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigError(missing, "???", "a value", "Put config.yaml back from a copy.")
    return cfg  # type: ignore[return-value]


def check(cfg: DictConfig, typed: Collection[str], base: Path | None = None) -> None:
    """Refuse what may run foreign code, but for the ``typed`` keys, whose values the user typed.

    Raises:
        ConfigError: naming the key and what it names.
    """
    from omegaconf import OmegaConf

    shipped: set[str] | None = None
    for path, value in _entries("", OmegaConf.to_container(cfg)):
        if any(path == key or path.startswith(f"{key}.") for key in typed):
            continue
        name = path.rpartition(".")[2]
        if name == "_target_":
            shipped = _shipped(base) if shipped is None else shipped
            if not _is_known(value, shipped):
                raise ConfigError(path, value, ALLOWED, HINT)
        elif path in OPTIMIZERS and "." in str(value) and not str(value).startswith(LIBRARIES):
            raise ConfigError(path, value, "an optimiser of torch.optim or pytorch_optimizer in the configuration of "
                              "a run folder", HINT)
        elif path == "backend.address" and value is not None and value not in HERE:
            raise ConfigError(path, value, "null or auto in the configuration of a run folder",
                              f"Whoever has that cluster can run anything here. {HINT}")


def _check_plain(text: str) -> None:
    import yaml

    events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        found, where = "", event.start_mark.line + 1
        if depth > DEEPEST:     # the reader's time grows with the square of it
            found = f"sections more than {DEEPEST} deep"
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            found = "an alias or anchor"
        elif getattr(event, "tag", None) not in TAGS:
            found = f"the tag {event.tag}"
        elif isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            found = f"the interpolation {event.value[:80]}"
        if found:
            raise ConfigError(f"config.yaml, line {where}", found, "plain values in the configuration of a run folder",
                              HINT)


def _entries(prefix: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Walk sections and lists: (dotted key, value) of everything that is neither."""
    if not isinstance(tree, dict | list):
        yield prefix, tree
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in items:
        path = f"{prefix}.{name}" if prefix else str(name)
        if "." in str(name):    # which would read as another key
            raise ConfigError(path, name, "keys without a dot in the configuration of a run folder", HINT)
        if name == "_target_":
            yield path, value
        else:
            yield from _entries(path, value)


def _shipped(base: Path | None) -> set[str]:
    """Return the classes that the shipped options name."""
    return {target for options in catalog.options(None, base).values() for option in options.values()
            for target in TARGET.findall(option.path.read_text(encoding="utf-8"))}


def _is_known(target: Any, shipped: set[str]) -> bool:
    """Say whether a target is a class that may be named; nothing but fedlearn and torch is imported for it."""
    if not isinstance(target, str):
        return False
    if target in shipped:
        found = _found(target)
        return isinstance(found, type) and f"{found.__module__}.{found.__qualname__}" == target
    for start, (module, name) in TORCH.items():
        if target.startswith(start):
            found, kind = _found(target), getattr(import_module(module), name)
            return isinstance(found, type) and issubclass(found, kind) and found.__module__.startswith(start)
    return False


def _found(target: str) -> Any:
    module, _, name = target.rpartition(".")
    if not all(part.isidentifier() for part in target.split(".")):
        return None
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, AttributeError, RuntimeError):
        return None
