"""Grids: the noise levels that a sampler visits.

A grid has ``steps + 1`` levels in float64 on the host, noisy first, and carries the schedule's clock beside them. Grids
stay on the host because solver coefficients are made from them in float64: no step of the sampling loop then has to
wait for a device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import GridError
from fewstep.noise.level import NoiseLevel

__all__ = ["Grid", "check_grid"]


class Grid(NamedTuple):
    """The levels a sampler visits, noisy first.

    Attributes:
        levels: ``steps + 1`` levels, float64; alpha may be 0 in the first, sigma may be 0 in the last.
        t: the schedule's clock at each level, shape (steps + 1,).
    """

    levels: NoiseLevel
    t: Tensor

    @property
    def steps(self) -> int:
        """Number of intervals."""
        return self.t.shape[0] - 1

    def at(self, i: int) -> NoiseLevel:
        """The i-th level, scalars; negative i counts from the end."""
        return NoiseLevel(self.levels.alpha[i], self.levels.sigma[i])

    def exit_at(self, i: int) -> Grid:
        """The chain that leaves early: i steps as they are, then one from level i straight to the last level.

        Args:
            i: the level to leave at, 0 to ``steps - 1``; the latter changes nothing.

        Returns:
            Grid of ``i + 1`` steps.

        Raises:
            GridError: if there is no such level, or no step left to make from it.
        """
        if not 0 <= i < self.steps:
            raise GridError(
                f"Leaving a grid of {self.steps} steps at level {i}",
                f"Levels 0 to {self.steps - 1} have a step before them",
                "Choose one of them",
            )
        kept = [*range(i + 1), self.steps]
        return Grid(NoiseLevel(self.levels.alpha[kept], self.levels.sigma[kept]), self.t[kept])

    def from_noise(self) -> Grid:
        """The same grid begun at pure noise: its first level becomes (0, 1), the others and the clock stay."""
        alpha, sigma = self.levels
        first = torch.cat([torch.zeros_like(alpha[:1]), alpha[1:]]), torch.cat([torch.ones_like(sigma[:1]), sigma[1:]])
        return Grid(NoiseLevel(*first), self.t)


def check_grid(grid: Grid) -> Grid:
    """Prove that the noise of a grid strictly decreases; anybody can fill a Grid by hand.

    Args:
        grid: levels of shape (steps + 1,), steps >= 1.

    Returns:
        The grid itself.

    Raises:
        GridError: if a level does not have less noise than the one before, is negative, infinite or NaN, has neither
            data nor noise, or if the lengths of alpha, sigma and t differ.
    """
    alpha, sigma, t = (part.detach() for part in (*grid.levels, grid.t))
    fits = alpha.shape == sigma.shape == t.shape and t.ndim == 1 and t.shape[0] > 1
    # The angle is like kappa, but finite at alpha = 0.
    size = alpha + sigma
    legal = (alpha >= 0) & (sigma >= 0) & size.isfinite() & (size > 0) if fits else alpha
    if not fits or not bool(legal.all() and (torch.atan2(sigma, alpha).diff() < 0).all()):
        raise GridError(
            f"A grid with times {_said(t)}, alpha {_said(alpha)} and sigma {_said(sigma)}",
            "Two or more finite levels whose noise strictly decreases, from the first to the last",
            "Sort the levels, drop the duplicates, or take fewer steps",
        )
    return grid


def _said(part: Tensor) -> str:
    """Numbers of a grid as they are; of a long grid, those around the first that does not fall."""
    numbers = part.flatten().tolist()
    if len(numbers) <= 12:
        return str(numbers)
    fault = next((i for i in range(1, len(numbers)) if not numbers[i] < numbers[i - 1]), 1)
    start = max(fault - 3, 0)
    return f"[{'..., ' if start else ''}{', '.join(map(str, numbers[start : fault + 3]))}, ...]"
