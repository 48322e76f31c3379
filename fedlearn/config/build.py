"""Nodes of a configuration into objects: keys, types and ranges are checked on the way.

A node names its class in ``_target_``. The fields of a dataclass are its schema: their names are the
keys that are allowed, their annotations the types. Of any other class or function (a user's
``nn.Module``) the signature is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from fedlearn.errors import ConfigError, one_of

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def build_node(node: Any, key: str) -> Any:
    """Return the object that a node with a ``_target_`` describes; ``key`` is its dotted key.

    Raises:
        ConfigError: naming the full dotted key of what is unknown, missing, mistyped or out of range.
    """
    values = _plain(node, key)
    target = values.pop("_target_", None)
    if target is None:
        raise ConfigError(f"{key}._target_", None, "the dotted path of a class",
                          "Choose an option of the group.")
    made = locate(target, f"{key}._target_")
    if is_dataclass(made) and isinstance(made, type):
        return build_as(made, values, key)
    _check_signature(made, values, key)
    built = {name: build_node(value, f"{key}.{name}") if _is_node(value) else value
             for name, value in values.items()}
    return _call(made, built, key)


def build_as(cls: type, node: Any, key: str = "") -> Any:
    """Return an instance of the dataclass ``cls`` from a node's keys; fields left out keep their default.

    Raises:
        ConfigError: as ``build_node`` does.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values = _plain(node, key)
    hints = get_type_hints(cls)
    taken = {field.name: hints[field.name] for field in fields(cls) if field.init}
    _known(values, taken, key)
    nested = {name: build_as(taken[name], values.pop(name), _join(key, name))
              for name in list(values) if is_dataclass(taken[name])}
    try:
        schema = OmegaConf.structured(cls)
    except OmegaConfBaseException as error:
        raise ConfigError(key, cls.__qualname__,
                          "fields of type int, float, bool, str or Enum, of one or None, or of lists of them",
                          " ".join(str(error).split())) from None
    given: dict[str, Any] = {}
    for name, value in values.items():
        try:
            checked = OmegaConf.merge(schema, {name: value})
            plain: Any = OmegaConf.to_container(checked)
            given[name] = _convert(plain[name], taken[name])
        except OmegaConfBaseException:
            raise ConfigError(_join(key, name), value, words(taken[name])) from None
    missing = [f.name for f in fields(cls) if f.init and OmegaConf.is_missing(schema, f.name)
               and f.name not in given and f.name not in nested]
    if missing:
        raise ConfigError(_join(key, missing[0]), "nothing", words(taken[missing[0]]), "It has no default.")
    return _call(cls, given | nested, key)


def words(hint: Any) -> str:
    """Say in words which values a type annotation allows."""
    if hint in WORDS:
        return WORDS[hint]
    if get_origin(hint) in (list, tuple):
        inner = get_args(hint)[0]
        return f"a list, each entry {words(inner)}"
    if get_origin(hint) is dict:
        return "a section with keys"
    if options := get_args(hint):
        return " or ".join(words(option) for option in options)
    return one_of(hint.__members__) if hasattr(hint, "__members__") else getattr(hint, "__name__", str(hint))


def locate(target: str, key: str) -> Any:
    """Import what a dotted path names.

    Raises:
        ConfigError: if there is no such module or no such name in it.
    """
    module_name, _, name = str(target).rpartition(".")
    allowed = "the dotted path of a class or function that can be imported"
    if not module_name or not all(part.isidentifier() for part in str(target).split(".")):
        raise ConfigError(key, target, allowed)
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(key, target, allowed, f"Python says: {error}.") from None
    if not callable(found := getattr(module, name, None)):
        classes = (n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module_name)
        raise ConfigError(key, target, f"in {module_name}, {one_of(classes, name)}")
    return found


def _plain(node: Any, key: str) -> dict[str, Any]:
    """Return a node as a dict; values that are still missing are refused."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(node):
        for missing in sorted(OmegaConf.missing_keys(node)):
            raise ConfigError(_join(key, missing), "???", "a value", f"Add {_join(key, missing)}=...")
        node = OmegaConf.to_container(node)
    if not isinstance(node, Mapping):
        raise ConfigError(key, node, "a section with keys")
    return dict(node)


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _known(values: Mapping[str, Any], allowed: Any, key: str) -> None:
    for name in values:
        if name not in allowed:
            names = one_of(allowed, str(name)) if allowed else "no keys"
            raise ConfigError(_join(key, str(name)), name, names)


def _check_signature(made: Any, values: Mapping[str, Any], key: str) -> None:
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):  # some builtins have none
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    _known(values, named, key)
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in values:
            raise ConfigError(_join(key, name), "nothing", "a value", f"Add +{_join(key, name)}=...")


def _call(made: Any, values: dict[str, Any], key: str) -> Any:
    """Call, and put the dotted key before the key of a ConfigError that comes out."""
    try:
        return made(**values)
    except ConfigError as error:
        if not key or error.key == key or error.key.startswith(f"{key}."):
            raise
        raise ConfigError(f"{key}.{error.key}", error.found, error.allowed, error.hint) from None
    except (TypeError, ValueError, RuntimeError) as error:
        if is_dataclass(made):
            raise  # ours: a bug, not a value of the user's
        raise ConfigError(key, values, f"arguments that {made.__qualname__} takes",
                          f"It says: {' '.join(str(error).split())}.") from error


def _convert(value: Any, hint: Any) -> Any:
    """Give a list the type of its annotation: frozen dataclasses like tuples."""
    hints = (hint, *get_args(hint))
    if isinstance(value, list) and any(get_origin(h) is tuple or h is tuple for h in hints):
        return tuple(value)
    return value
