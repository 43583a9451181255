"""Parts: things out of tables, written down so that JSON can hold them.

A network, a prediction, a schedule, a draw or a weight is named in a configuration by its name in a table and the
arguments of its constructor; building it checks both and names the nearest known ones.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from fewstep.errors import ConfigError, FewstepError, about, choose

__all__ = ["Part"]

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One thing out of a table, written down: its name there and the arguments of its constructor.

    Args:
        name: name in the table.
        arguments: keyword arguments that JSON can hold.

    Raises:
        ConfigError: if the name is no word, or the arguments have no names.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = isinstance(self.arguments, Mapping) and all(isinstance(key, str) for key in self.arguments)
        if not isinstance(self.name, str) or not named:
            raise ConfigError(
                f"A part with the name {self.name!r} and the arguments {self.arguments!r}",
                "A part has a name, which is a word, and named arguments",
                'Write {"name": "unet", "arguments": {"width": 32}}',
            )

    @classmethod
    def spelled(cls, text: str) -> Part:
        """Read a part as it is written on a command line, ``name:argument=value:argument=value``.

        Args:
            text: such as "ddim:eta=0.5"; values are JSON where they can be, and words where they cannot.

        Returns:
            The part; whether there is such a thing is seen when it is built.

        Raises:
            ConfigError: if an argument has no value.
        """
        name, *options = text.strip().split(":")
        pairs = [option.partition("=") for option in options]
        for key, equals, _ in pairs:
            if not (key and equals):
                raise ConfigError(
                    f"{text!r} with {key!r}",
                    "Options are written name:argument=value",
                    "Write for instance ddim:eta=0.5",
                )
        return cls(name, {key: _value(value) for key, _, value in pairs})

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.arguments.items())])

    @overload
    def build(self, table: Mapping[str, type[T]], kind: str) -> T: ...

    @overload  # mypy would call what a table of several classes makes an object, were this the only signature
    def build(self, table: Mapping[str, Callable[..., T]], kind: str) -> T: ...

    def build(self, table: Mapping[str, Callable[..., T]], kind: str) -> T:
        """Construct the thing.

        Args:
            table: name -> class, or what makes an instance.
            kind: what the table holds, for messages.

        Returns:
            An instance.

        Raises:
            UnknownName: if the table has no such name, or the constructor no such argument.
            ConfigError: if the constructor cannot use a value.
        """
        made = choose(self.name, table, kind)
        known = inspect.signature(made).parameters
        for argument in self.arguments:
            choose(argument, known, f"argument of {kind} {self.name!r}")
        try:
            with about(f"{kind} {self}"):
                return made(**self.arguments)
        except FewstepError:
            raise
        except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            raise ConfigError(
                f"The {kind} {self.name!r} cannot be built with {dict(self.arguments)} ({error})",
                f"Its arguments are {inspect.signature(made)}",
                "Correct the arguments",
            ) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
