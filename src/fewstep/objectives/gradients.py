"""How deep one training step differentiates the chain: the ways of the papers, as rules that pick an unroll policy.

==================  ========================================  ==========================================================
rule                gradient of the final sample              known as
==================  ========================================  ==========================================================
``Through()``       exact, through every step                 end to end
``Through(Last..)`` of the last k steps                       DRaFT-K
``RandomSteps(m)``  of the last k steps, k = 1..m at random   AlignProp
``RandomExit()``    of the last step of a chain that leaves   backward simulation of DMD2, Self-Forcing
                    for the end at a random level
==================  ========================================  ==========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.sampling import Full, LastSteps, Unroll

__all__ = ["Depth", "Gradient", "RandomExit", "RandomSteps", "Through"]


class Depth(NamedTuple):
    """The levels that one training step visits, and how it differentiates on the way."""

    grid: Grid
    unroll: Unroll


class Gradient(Protocol):
    """A rule that says how deep to differentiate."""

    def __call__(self, grid: Grid, generator: Generator) -> Depth:
        """Pick what to run of a grid, and the policy of its unroll, with randomness that all processes share."""
        ...


def _one_to(most: int, generator: Generator) -> int:
    return 1 + int(torch.randint(most, (), generator=generator))


@dataclass(frozen=True)
class Through:
    """Always the same policy.

    Args:
        unroll: the policy; Full() and Checkpointed() differentiate every step.
    """

    unroll: Unroll = Full()

    def __call__(self, grid: Grid, generator: Generator) -> Depth:
        """Run the whole grid."""
        return Depth(grid, self.unroll)


@dataclass(frozen=True)
class RandomSteps:
    """Differentiate a random number of steps, counted from the end.

    Args:
        most: the largest number; a shorter chain is differentiated wholly at most.

    Raises:
        ConfigError: if `most` is below 1.

    Source:
        Prabhudesai et al. 2023, arXiv:2310.03739 (randomised truncation). Departs from it in: k is at least 1.
    """

    most: int = 8

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ConfigError(f"RandomSteps(most={self.most})", "most is 1 or more", "Use RandomSteps()")

    def __call__(self, grid: Grid, generator: Generator) -> Depth:
        """Run the whole grid; k is uniform in 1..min(most, steps)."""
        return Depth(grid, LastSteps(_one_to(min(self.most, grid.steps), generator)))


@dataclass(frozen=True)
class RandomExit:
    """Leave the chain at a random level for the clean end, and differentiate that last step alone.

    Every level is so trained on the samples that the chain itself brings there.

    Source:
        Huang et al. 2025, arXiv:2506.08009, Algorithm 1. Departs from it in: images, not frames of a video.
    """

    def __call__(self, grid: Grid, generator: Generator) -> Depth:
        """Run the first steps of the grid, then one to its end; every level is left equally often."""
        return Depth(grid.exit_at(_one_to(grid.steps, generator) - 1), LastSteps(1))
