"""Chains: how a few-step model is sampled, written down so that it travels with the weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep._part import Part
from fewstep.errors import ConfigError

__all__ = ["MOST_STEPS", "Chain", "are_steps"]

MOST_STEPS = 8


def are_steps(counts: Iterable[Any]) -> bool:
    """Whether all of these are numbers of steps that a chain may have."""
    return all(type(count) is int and 1 <= count <= MOST_STEPS for count in counts)


@dataclass(frozen=True)
class Chain:
    """The chain that a model was trained through, from noise to data; JSON can hold it.

    Args:
        solver: name in SOLVERS and arguments.
        spacing: name in SPACINGS and arguments; the grid starts at pure noise whatever the spacing, unless leaky.
        steps: numbers of steps it was trained for, ascending, each 1 to 8.
        leaky: whether training started at a level that still shows the data (only an ablation does).
        learned: number of steps, as a word -> table of a :class:`~fewstep.sampling.LearnedChain`, one for each of
            `steps`; they replace solver and spacing. None if nothing was learned.

    Raises:
        ConfigError: if a value has the wrong form.
    """

    solver: Part = Part("ddim")
    spacing: Part = Part("uniform_flow")
    steps: tuple[int, ...] = (1, 2, 4)
    leaky: bool = False
    learned: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        parts = isinstance(self.solver, Part) and isinstance(self.spacing, Part)
        _require(parts, f"A chain of {self.solver!r} on {self.spacing!r}", "Both are parts", 'Write Part("ddim")')
        whole = isinstance(self.steps, tuple) and are_steps(self.steps)
        ascending = whole and list(self.steps) == sorted(set(self.steps)) != []
        allowed = f"Different whole numbers from 1 to {MOST_STEPS}, ascending"
        _require(ascending, f"A chain for steps={self.steps!r}", allowed, "Write for instance steps=(1, 2, 4)")
        _require(type(self.leaky) is bool, f"leaky={self.leaky!r}", "It is true or false", "Change leaky")
        if self.learned is not None:
            every = isinstance(self.learned, Mapping) and set(self.learned) == {str(n) for n in self.steps}
            allowed = f"One table for each of {self.steps}, under the number as a word"
            _require(every, f"Learned tables {self.learned!r}", allowed, "Write LearnedChain.table() of each")

    @property
    def longest(self) -> int:
        """The largest number of steps it was trained for."""
        return self.steps[-1]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Chain:
        """Rebuild a chain from what ``dataclasses.asdict`` and JSON made of it.

        Args:
            content: the keys of this class; missing ones take their defaults.

        Returns:
            The chain.

        Raises:
            ConfigError: if a value has the wrong form.
            TypeError: if a key is unknown.
        """
        parts = {key: Part(**content[key]) for key in ("solver", "spacing") if key in content}
        steps = {"steps": tuple(content["steps"])} if "steps" in content else {}
        return cls(**{**content, **parts, **steps})


def _require(holds: bool, given: str, allowed: str, todo: str) -> None:
    if not holds:
        raise ConfigError(given, allowed, todo)
