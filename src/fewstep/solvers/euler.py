"""Euler's method in kappa, with EDM's churn if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource
from fewstep.solvers.churn import Churn, Start, churned, starts
from fewstep.solvers.coeffs import levels_of
from fewstep.solvers.multistep import Row, combine, ddim_row

__all__ = ["Euler"]


class _Step(NamedTuple):
    """Where a step begins, and its weights."""

    start: Start
    row: Row


@dataclass(frozen=True)
class Euler:
    r"""Euler's method for :math:`d(x/\alpha)/d\kappa = (x - \alpha m)/\sigma`.

    Without churn it is DDIM, number for number, and on a straight path it is Euler's method in time: a rule of first
    order has no coordinate but this one in which constants are exact. One call a step.

    Args:
        churn: fresh noise before each step, or its amount alone; None for none.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 2 without its second-order correction; k-diffusion,
        sample_euler. Departs from it in: written for any alpha.
    """

    churn: Churn | float | None = None
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "churn", churned(self.churn))

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.churn is not None

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> tuple[_Step, ...]:
        """Compute the weights."""
        ends = levels_of(grid)[1:]
        return tuple(
            _Step(start, ddim_row(start.numbers, there))
            for start, there in zip(starts(grid, self.churn), ends, strict=True)
        )

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Grid,
        i: int,
        state: tuple[_Step, ...],
        noise: NoiseSource | None = None,
    ) -> tuple[Tensor, tuple[_Step, ...]]:
        """Carry x from level i to level i + 1."""
        start, row = state[i]
        x = start.churn(x, i, noise)
        return combine(row, x, denoise(x, start.level)), state
