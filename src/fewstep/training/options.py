"""Options that refuse typing errors: a key is looked up, a value has the type of the one it replaces.

Frozen dataclasses hold the options; :func:`assign` sets one by its dotted name, :func:`rebuilt` reads all of them from
JSON. Every change rebuilds the dataclasses on its way, so their own checks run.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar, get_type_hints

from fewstep._part import Part
from fewstep.errors import ConfigError, choose

__all__ = ["Tables", "arguments_of", "assign", "defaults_of", "rebuilt", "refuse_unless", "typed"]

ConfigT = TypeVar("ConfigT")
Tables: TypeAlias = Mapping[str, Mapping[str, Callable[..., Any]]]
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "a list of numbers",
    Part: "a name and arguments",
}


def refuse_unless(holds: bool, config: Any, name: str, allowed: str, group: str = "") -> None:
    """Refuse the value of one option, said as one writes it; raises ConfigError unless it holds what is allowed."""
    if not holds:
        value, key = getattr(config, name), f"{group}.{name}" if group else name
        said = list(value) if isinstance(value, tuple) else value
        raise ConfigError(f"{key}={said!r}", f"{key} is {allowed}", f"Change {key}")


def typed(value: Any, like: Any, key: str) -> Any:
    """Check that a value has the type of the one it replaces; whole numbers do for decimal ones, lists for tuples."""
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(like, tuple) and isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return tuple(value)
    if type(value) is type(like) or (like is None and isinstance(value, int | float)):
        return value
    kind = _KINDS.get(type(like), "a number" if like is None else "a group of keys")
    such = list(like) if isinstance(like, tuple) else like
    raise ConfigError(
        f"{key}={value!r} ({type(value).__name__})", f"{key} takes {kind}, such as {such!r}", f"Change {key}"
    )


def defaults_of(make: Callable[..., Any]) -> dict[str, Any]:
    """Name the arguments of a callable, all of which have defaults, and give these."""
    parameters = inspect.signature(make).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def arguments_of(given: Mapping[str, Any], known: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Check the arguments that a user gave something against the defaults of those it knows.

    Args:
        given: name -> value.
        known: name -> default.
        key: dotted name of the group, for messages.

    Returns:
        The given ones, each in the type of its default.

    Raises:
        UnknownName: if an argument is not known.
        ConfigError: if a value has the wrong type.
    """
    return {
        name: typed(value, choose(name, known, f"argument of {key}"), f"{key}.{name}") for name, value in given.items()
    }


def assign(config: ConfigT, path: list[str], text: str, key: str, tables: Tables) -> ConfigT:
    """Set one value below a dataclass, rebuilding every dataclass on the way.

    Args:
        config: where to start.
        path: names that lead to the value.
        text: the value, as JSON or as a word.
        key: the whole dotted name, for messages.
        tables: name of a part -> where it is looked up.

    Returns:
        The changed dataclass.

    Raises:
        UnknownName: if a name on the path, or of a part, does not exist.
        ConfigError: if the value has the wrong type, or the dataclass refuses it.
    """
    hints = get_type_hints(type(config))
    choose(path[0], hints, f"key of {type(config).__name__}")
    old = getattr(config, path[0])
    new: Any
    if isinstance(old, Part):
        new = _assign_part(old, path, text, key, tables[path[0]])
    elif dataclasses.is_dataclass(old):
        if len(path) == 1:
            raise ConfigError(f"{key}={text}", f"{key} is a group of keys", f"Write {key}.<key>=value")
        new = assign(old, path[1:], text, key, tables)
    elif isinstance(old, Mapping) and len(path) == 3:
        new = {**old, path[1]: {**old.get(path[1], {}), path[2]: _parsed(text)}}
    elif isinstance(old, Mapping) and len(path) == 2:
        raise ConfigError(f"{key}={text}", f"{key} is a group of keys", f"Write {key}.<key>=value")
    elif len(path) > 1:
        raise ConfigError(f"{key}={text}", f"{path[0]} is a single value", f"Write {path[0]}=value")
    else:
        new = text if isinstance(old, str) else typed(_parsed(text), old, key)
    return dataclasses.replace(config, **{path[0]: new})  # type: ignore[type-var]


def _assign_part(part: Part, path: list[str], text: str, key: str, table: Mapping[str, Callable[..., Any]]) -> Part:
    """Set a part by name, or one of its arguments."""
    if len(path) > 2:
        raise ConfigError(f"{key}={text}", f"{path[1]} is a single value", f"Write {path[0]}.{path[1]}=value")
    if len(path) == 1:
        choose(text, table, path[0])
        return Part(text)
    parameters = inspect.signature(choose(part.name, table, path[0])).parameters
    parameter = choose(path[1], parameters, f"argument of {path[0]} {part.name!r}")
    return Part(part.name, {**part.arguments, path[1]: typed(_parsed(text), parameter.default, key)})


def _parsed(text: str) -> Any:
    """Read a value as JSON; what is no JSON is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def rebuilt(cls: type[Any], content: Mapping[str, Any], prefix: str = "") -> Any:
    """Build a dataclass from JSON, checking keys and types against its defaults.

    Args:
        cls: a dataclass whose options all have defaults.
        content: name -> value.
        prefix: what stands before the names in messages.

    Returns:
        The dataclass.

    Raises:
        UnknownName: if a key is unknown.
        ConfigError: if a value has the wrong type, or the dataclass refuses it.
    """
    default = cls()
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in content.items():
        choose(name, hints, f"key of {cls.__name__}")
        old, key = getattr(default, name), prefix + name
        if not isinstance(value, Mapping):
            values[name] = typed(value, old, key)
        elif isinstance(old, Part) and value.keys() == {"name", "arguments"}:
            values[name] = Part(value["name"], value["arguments"])
        elif dataclasses.is_dataclass(old) and not isinstance(old, Part):
            values[name] = rebuilt(type(old), value, f"{key}.")
        else:
            values[name] = typed(value, old, key)
    return cls(**values)
