"""A multistep rule whose weights come out of a table: what a learned chain samples with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.errors import ConfigError, GridError
from fewstep.noise import Grid
from fewstep.solvers.coeffs import Number, ddim_weights, steps_of
from fewstep.solvers.multistep import Multistep, Plan, Row

__all__ = ["MultistepTable"]


@dataclass(frozen=True)
class MultistepTable(Multistep):
    r"""DDIM with a given share of every earlier estimate, one call a step.

    .. math::
        x_{i+1} = \tfrac{\sigma_{i+1}}{\sigma_i} x_i + (\alpha_{i+1} - \alpha_i \tfrac{\sigma_{i+1}}{\sigma_i})
                  \Big(m_i + \sum_{j<i} c_{ij} (m_j - m_i)\Big)

    Exact for a constant denoised whatever the weights; with all weights 0 it is DDIM, bit for bit. The weights belong
    to one grid, so nothing is declared beyond the first order.

    Args:
        weights: c, one row per step after the first: row i - 1 has the i weights of the estimates 0 to i - 1. Numbers,
            or scalar tensors that carry a gradient.

    Raises:
        ConfigError: if a row has the wrong length.
    """

    weights: tuple[tuple[float | Tensor, ...], ...]
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

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step; refuses a grid longer than the table (a chain that exits early is shorter)."""
        if grid.steps > len(self.weights) + 1:
            raise GridError(
                f"A grid of {grid.steps} steps",
                f"This table has weights for {len(self.weights) + 1}",
                "Use the grid that it was made for",
            )
        rows = []
        for (here, there), shares in zip(steps_of(grid), ((), *self.weights), strict=False):
            r, b = ddim_weights(here, there)
            rest: Number = 1.0 - sum(shares)
            rows.append(Row(r, b * rest, tuple(b * c for c in reversed(shares))))
        return Plan(tuple(rows))
