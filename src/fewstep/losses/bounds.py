"""Keeping samples between black and white, where a view that clips them no longer pulls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from fewstep.errors import ConfigError
from fewstep.losses.base import Outcome, Role, check_draws, precise

__all__ = ["Bounds"]


@dataclass(frozen=True)
class Bounds:
    r"""Mean squared distance of the samples' numbers to an interval somewhat wider than that of the data.

    .. math:: \mathbb E \max(|F| - 1 - m, 0)^2

    Behind a view that clips, nothing holds a saturated pixel, and training pushes it further and further: the picture
    stays the same, and the later steps of a longer chain see samples of ever more contrast. This term sees samples as
    they are, so it is no use behind a view itself. With no margin it would hold black pixels at the very edge, and
    small errors would make some of them grey.

    Args:
        margin: m, how far beyond black and white is free, data units, at least 0.

    Raises:
        ConfigError: if the margin is negative.

    Source:
        None.
    """

    margin: float = 0.5

    draws: ClassVar[int] = 1
    role: ClassVar[Role] = "reward"

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ConfigError(f"margin={self.margin:g}", "A margin is 0 or above", "Use 0.5")

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Average over draws, conditions and numbers."""
        check_draws(outcome, 1, "Bounds")
        return precise((outcome.fake.abs() - 1 - self.margin).clamp(min=0)).square().mean()
