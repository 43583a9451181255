"""DPM-Solver++ 2M: the slope of the last two estimates, one call a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import Denoise, Estimate, NoiseSource, has_finite_lam, move, slope

__all__ = ["DPMpp2M", "extrapolate"]


def extrapolate(x: Tensor, now: Estimate, before: Estimate | None, there: NoiseLevel) -> Tensor:
    r"""Second-order multistep move with denoised extrapolated to the middle of the step.

    .. math:: x' = r x + b \left(m + \tfrac{h}{2}\, \tfrac{m - m_-}{\lambda - \lambda_-}\right)

    A DDIM move where lam is infinite at either end of the step or of the slope, or where there is no earlier estimate.

    Args:
        x: samples at the level of `now`, shape (b, *d).
        now: estimate m at x.
        before: the estimate one step earlier, or None.
        there: level to reach, scalars.

    Returns:
        Samples at `there`, shape and dtype of x.

    Source:
        Lu et al. 2022, arXiv:2211.01095, Algorithm 2. Departs from it in: nothing; it is the midpoint variant.
    """
    if before is None or not (has_finite_lam(before.level) and has_finite_lam(there)):
        return move(x, now.denoised, now.level, there)
    half = (there.lam - now.level.lam) / 2
    return move(x, now.denoised + half * slope(before, now), now.level, there)


@dataclass(frozen=True)
class DPMpp2M:
    """DPM-Solver++ of second order, multistep, on denoised estimates.

    Each step extrapolates the last two estimates to its own middle: see :func:`extrapolate`. One call a step.

    Source:
        Lu et al. 2022, arXiv:2211.01095, Algorithm 2. Departs from it in: steps at infinite lam are DDIM steps.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> Estimate | None:
        """Nothing remembered yet."""
        return None

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Grid,
        i: int,
        state: Estimate | None,
        noise: NoiseSource | None = None,
    ) -> tuple[Tensor, Estimate]:
        """Carry x from level i to level i + 1; the state is the estimate made on the way."""
        here, there = grid.at(i), grid.at(i + 1)
        now = Estimate(denoise(x, here), here)
        return extrapolate(x, now, state, there), now
