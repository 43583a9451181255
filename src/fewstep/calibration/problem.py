r"""What a solver is fitted to: a denoiser, the noise its trajectories begin with, and what it is told.

Everything in this package happens in :math:`\hat x = x / \alpha` over :math:`\kappa = \sigma / \alpha`, in which the
probability-flow ODE is :math:`d\hat x / d\kappa = (\hat x - m) / \kappa` whatever the schedule, so a fitted rule is a
statement about the denoiser alone. Only :meth:`Problem.estimate` knows the schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep._cond import placed, rows_of
from fewstep.denoisers import Cond, Denoiser, evaluate
from fewstep.errors import ConfigError, ShapeError
from fewstep.noise import Grid, NoiseLevel, Schedule, check_grid

__all__ = ["Problem", "levels_at", "plain_grid", "rms"]


def levels_at(schedule: Schedule, kappa: Tensor) -> Grid:
    """Make the grid of a schedule through given levels.

    Args:
        schedule: gives the coordinates.
        kappa: levels as sigma / alpha, shape (steps + 1,), float64, finite, descending, above 0; differentiable.

    Returns:
        The grid.

    Raises:
        LevelError: if the schedule does not have a level.
        GridError: if they do not descend.
    """
    t = schedule.t_of_lam(-kappa.log())
    return check_grid(Grid(schedule.level(t), t))


def plain_grid(kappa: Tensor) -> Grid:
    """The same levels with alpha = 1, in which samples are already divided by alpha."""
    return Grid(NoiseLevel(torch.ones_like(kappa), kappa), kappa)


def rms(x: Tensor) -> float:
    """Root mean square of all numbers."""
    return float(x.detach().double().square().mean().sqrt())


@dataclass(frozen=True)
class Problem:
    """Trajectories to fit on: how many there are is the length of `start`.

    Args:
        denoisers: what leads them; of several, such as one model under several guidance scales, each leads every
            len(denoisers)-th.
        schedule: of the denoisers.
        start: standard normal noise, shape (n, *d), on the device of the networks.
        cond: conditions, n rows each, or None.
        kappa_max: level of the start, inside the schedule.
        kappa_min: level of the end.
        batch: rows per call of a denoiser.

    Raises:
        ConfigError: if the levels do not descend, or are not above 0 and finite, or a batch has no row.
        ShapeError: if a condition has another number of rows.
    """

    denoisers: tuple[Denoiser, ...]
    schedule: Schedule
    start: Tensor
    cond: Cond = None
    kappa_max: float = 80.0
    kappa_min: float = 0.002
    batch: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.kappa_min < self.kappa_max < float("inf"):
            raise ConfigError(
                f"Trajectories from kappa {self.kappa_max:g} to {self.kappa_min:g}",
                "Noise decreases along them, between two finite levels above 0",
                "Begin for instance at 80 and end at 0.002",
            )
        if self.batch < 1:
            raise ConfigError(f"Batches of {self.batch} rows", "One row or more in a call", "Use for instance batch=64")
        for name, rows in (self.cond or {}).items():
            if len(rows) != len(self):
                raise ShapeError(
                    f"{len(rows)} rows of the condition {name!r} for {len(self)} trajectories",
                    "Every trajectory has a row of every condition",
                    "Give one row for each seed",
                )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def noise(self) -> Tensor:
        """The samples at the first level, over alpha."""
        return self.kappa_max * self.start

    def part(self, chosen: slice) -> Problem:
        """Some trajectories; the first of them must be led by the first denoiser."""
        return replace(self, start=self.start[chosen], cond=rows_of(self.cond, chosen))

    def led_by(self, k: int) -> list[int]:
        """Which trajectories denoiser k leads."""
        return list(range(k, len(self), len(self.denoisers)))

    def told(self, rows: Sequence[int] | Tensor) -> Cond:
        """Conditions of some trajectories."""
        chosen = rows_of(self.cond, torch.as_tensor(rows))
        return placed(chosen, self.start.device)

    def estimate(self, x: Tensor, kappa: Tensor | float) -> Tensor:
        """Denoise all trajectories at one level, without gradient.

        Args:
            x: samples over alpha, shape (n, *d) or the first of them.
            kappa: the level.

        Returns:
            Estimates of the data, shape and dtype of x.
        """
        level = self.schedule.level(self.schedule.t_of_lam(-torch.as_tensor(kappa, dtype=torch.float64).log()))
        out = torch.empty_like(x)
        with torch.no_grad():
            for k, denoiser in enumerate(self.denoisers):
                own = [row for row in self.led_by(k) if row < len(x)]
                for first in range(0, len(own), self.batch):
                    rows = own[first : first + self.batch]
                    out[rows] = evaluate(denoiser, level.alpha.to(x.dtype) * x[rows], level, self.told(rows))
        return out
