r"""Weights that change over the training.

With the fraction :math:`f` of the training that is done, clipped to [0, 1],

.. math:: w(f) = start + (end - start)\, s(f), \qquad s = f \ \text{(linear)}, \quad
          s = \tfrac12 (1 - \cos \pi f) \ \text{(cosine)} .
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fewstep.errors import ConfigError, choose

__all__ = ["SHAPES", "Ramp"]


def _cosine(fraction: float) -> float:
    return (1 - math.cos(math.pi * fraction)) / 2


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda fraction: 0.0,
    "linear": lambda fraction: fraction,
    "cosine": _cosine,
}


@dataclass(frozen=True)
class Ramp:
    """A weight between two values.

    Args:
        start: weight at the beginning, at least 0.
        end: weight at the end, at least 0; None stays at the start.
        shape: name in SHAPES of the way between; "constant" needs equal ends.

    Raises:
        UnknownName: if there is no such shape.
        ConfigError: if a weight is negative or not finite, or a constant one has two values.
    """

    start: float = 1.0
    end: float | None = None
    shape: str = "cosine"

    def __post_init__(self) -> None:
        choose(self.shape, SHAPES, "shape of a ramp")
        if not all(0 <= weight < math.inf for weight in (self.start, self.last)):
            raise ConfigError(
                f"A weight from {self.start:g} to {self.last:g}",
                "Weights are finite and not negative",
                "Use 0 for a term that is off",
            )
        if self.shape == "constant" and self.last != self.start:
            raise ConfigError(
                f"A constant weight from {self.start:g} to {self.last:g}",
                "A constant weight has one value",
                "Use shape='linear' or 'cosine', or leave the end out",
            )

    @property
    def last(self) -> float:
        """The weight at the end."""
        return self.start if self.end is None else self.end

    @property
    def is_off(self) -> bool:
        """Whether the weight is 0 from beginning to end."""
        return self.start == self.last == 0

    def __call__(self, fraction: float) -> float:
        """Give the weight when a fraction of the training is done; before 0 and after 1 the ends hold."""
        done = SHAPES[self.shape](min(max(fraction, 0.0), 1.0))
        return self.start + done * (self.last - self.start)
