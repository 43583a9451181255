"""A multistep rule whose weights come out of a table: calibrated solvers and learned chains sample with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.errors import ConfigError, GridError, ShapeError
from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource
from fewstep.solvers.coeffs import Number, ddim_weights, steps_of
from fewstep.solvers.multistep import Multistep, Plan, Row, Taken

__all__ = ["TabulatedSolver"]

_SAME = 1e-6  # relative difference of two kappa that are one level, written down and read again


@dataclass(frozen=True)
class TabulatedSolver(Multistep):
    r"""DDIM with a given share of every earlier estimate, one call a step.

    .. math::
        x_{i+1} = \tfrac{\sigma_{i+1}}{\sigma_i} x_i + (\alpha_{i+1} - \alpha_i \tfrac{\sigma_{i+1}}{\sigma_i})
                  \Big(m_i + \sum_{j<i} c_{ij} (m_j - m_i)\Big)

    Exact for a constant denoised whatever the weights; with all weights 0 it is DDIM, bit for bit. The weights belong
    to one grid, so nothing is declared beyond the first order.

    Args:
        weights: c, one row per step after the first: row i - 1 has the i weights of the estimates 0 to i - 1. Numbers,
            or scalar tensors that carry a gradient.
        kappa: levels of the grid that the weights were made for, as sigma / alpha; another grid is refused. Empty takes
            any grid that is not longer than the table.
        first: what the first estimate is taken to be, shape of one sample, data units, instead of a call: far out,
            the denoiser gives nearly the mean of the data. Then only a denoised of this value is integrated exactly.

    Raises:
        ConfigError: if a row has the wrong length, or there are levels for another number of steps.
    """

    weights: tuple[tuple[float | Tensor, ...], ...]
    kappa: tuple[float, ...] = ()
    first: Tensor | None = field(default=None, compare=False)
    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.weights]
        if lengths != list(range(1, len(lengths) + 1)):
            raise ConfigError(
                f"A table with rows of {lengths} weights",
                "The second step has one weight, and every later one more than the step before",
                "Write weights=() for one step, ((c10,), (c20, c21)) for three",
            )
        if self.kappa and len(self.kappa) != len(lengths) + 2:
            raise ConfigError(
                f"A table of {len(lengths) + 1} steps with {len(self.kappa)} levels",
                "There is one level more than there are steps",
                "Give all of them, from the noisiest to the cleanest",
            )

    def nfe(self, grid: Grid) -> int:
        """One call a step, and none in the first where its estimate is given."""
        return grid.steps - (self.first is not None)

    def init(self, x: Tensor, grid: Grid) -> Taken:
        """Compute the weights; refuses samples of another shape than the first estimate."""
        if self.first is not None and self.first.shape != x.shape[1:]:
            raise ShapeError(
                f"Samples of shape {tuple(x.shape)}",
                f"The first estimate of this table has the shape {tuple(self.first.shape)}",
                "Use the table with the model that it was fitted to",
            )
        return super().init(x, grid)

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: Taken, noise: NoiseSource | None = None
    ) -> tuple[Tensor, Taken]:
        """Carry x from level i to level i + 1."""
        first = self.first
        if i == 0 and first is not None:
            return super().step(lambda x, _: first.to(x).expand_as(x), x, grid, i, state)
        return super().step(denoise, x, grid, i, state)

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step; refuses a grid longer than the table (a chain that exits early is shorter)."""
        self._check(grid)
        rows = []
        for (here, there), shares in zip(steps_of(grid), ((), *self.weights), strict=False):
            r, b = ddim_weights(here, there)
            rest: Number = 1.0 - sum(shares)
            rows.append(Row(r, b * rest, tuple(b * c for c in reversed(shares))))
        return Plan(tuple(rows))

    def _check(self, grid: Grid) -> None:
        if grid.steps > len(self.weights) + 1:
            raise GridError(
                f"A grid of {grid.steps} steps",
                f"This table has weights for {len(self.weights) + 1}",
                "Use the grid that it was made for",
            )
        alpha, sigma = (part.detach() for part in grid.levels)
        own = torch.tensor(self.kappa, dtype=torch.float64)
        if self.kappa and not (len(own) == len(alpha) and bool(((sigma - own * alpha).abs() <= _SAME * sigma).all())):
            raise GridError(
                f"A grid with kappa {(sigma / alpha).tolist()}",
                f"The weights of this table were made for kappa {list(self.kappa)}, and mean nothing on other levels",
                "Take the grid from the table, with Table.way(schedule, nfe)",
            )
