"""What fewstep raises: every message says what was given, what is allowed and what to do.

The three parts are constructor arguments, so an error without one of them cannot be written.
All of them derive from :class:`FewstepError` and from the built-in exception a caller would expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

__all__ = [
    "BudgetError",
    "CheckpointError",
    "CollapseWarning",
    "ConfigError",
    "DataError",
    "DtypeError",
    "FewstepError",
    "GridError",
    "LevelError",
    "MissingExtra",
    "MissingWeights",
    "NonFiniteError",
    "OutputError",
    "ProtocolError",
    "ShapeError",
    "UnknownName",
    "about",
    "choose",
]

T = TypeVar("T")


class FewstepError(Exception):
    """Base of all errors that fewstep raises on purpose.

    Args:
        given: what was given, one sentence with the offending value.
        allowed: what is allowed instead.
        todo: what to do about it.
    """

    def __init__(self, given: str, allowed: str, todo: str) -> None:
        # All three go to Exception.args, so that errors survive pickling between processes.
        super().__init__(given, allowed, todo)
        self.given, self.allowed, self.todo = given, allowed, todo

    def __str__(self) -> str:
        return " ".join(part.rstrip(".") + "." for part in (self.given, self.allowed, self.todo))


class UnknownName(FewstepError, LookupError):
    """A name that is in no table."""


class LevelError(FewstepError, ValueError):
    """A noise level or time outside what the schedule, prediction or solver can handle."""


class GridError(FewstepError, ValueError):
    """A grid whose levels are not strictly decreasing in noise, or whose length is wrong."""


class ShapeError(FewstepError, ValueError):
    """A tensor of the wrong shape."""


class DtypeError(FewstepError, TypeError):
    """A tensor of the wrong dtype."""


class ConfigError(FewstepError, ValueError):
    """An option outside its range."""


class BudgetError(FewstepError, ValueError):
    """Fewer denoiser calls than the solver needs."""


class NonFiniteError(FewstepError, ArithmeticError):
    """NaN or infinity in a sample, a denoiser's output, a loss or a gradient."""


class CheckpointError(FewstepError, RuntimeError):
    """A checkpoint or model folder that is missing, corrupt, foreign or does not fit."""


class MissingWeights(FewstepError, RuntimeError):
    """Weights of a published network that are not where they were looked for; the message says where to get them."""


class DataError(FewstepError, RuntimeError):
    """Images that are missing, unreadable or of unlike shapes."""


class OutputError(FewstepError, RuntimeError):
    """An output folder that cannot be written: read only, full, or a file in its place."""


class ProtocolError(FewstepError, ValueError):
    """Numbers, caches or settings of unlike protocols, which must not be mixed."""


class MissingExtra(FewstepError, ImportError):
    """An optional library that is not installed."""


class CollapseWarning(UserWarning):
    """A training objective whose minimum is known to lose the variety of the data; it may be what is wanted."""


@contextmanager
def about(what: str) -> Iterator[None]:
    """Say in front of every error raised inside what it is about, such as the key of an option."""
    try:
        yield
    except FewstepError as error:
        raise type(error)(f"{what}: {error.given}", error.allowed, error.todo) from error


def choose(name: str, table: Mapping[str, T], kind: str) -> T:
    """Look a name up in a table of named things.

    Args:
        name: the name a user typed.
        table: name -> thing.
        kind: what the table holds, for the message: "solver", "schedule"...

    Returns:
        The thing of that name.

    Raises:
        UnknownName: if the table has no such name; the message lists all names and the nearest one.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name.lower(), table, n=1, cutoff=0.4)
    todo = f"Did you mean {near[0]!r}?" if near else "Choose one of the known names."
    raise UnknownName(f"No {kind} {name!r}", f"Known: {', '.join(sorted(table)) or 'none'}", todo)
