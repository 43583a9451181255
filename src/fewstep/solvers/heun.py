"""Heun: a trapezoid, two calls a step, with EDM's churn if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import Denoise, NoiseSource
from fewstep.solvers.churn import Churn
from fewstep.solvers.coeffs import Number, ddim_weights

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    r"""Trapezoidal rule for :math:`d(x/\alpha)/d\kappa = (x - \alpha m)/\sigma`, the second-order method of EDM.

    The difference of the two slopes is a difference of denoised estimates: with m at the start and m' at the end of
    the DDIM step,

    .. math:: x' = r x + b m + \tfrac12 \alpha' \left(\tfrac{\kappa}{\kappa'} - 1\right) (m' - m)

    Two calls a step; a step to sigma = 0 is the DDIM step and costs one.

    Args:
        churn: fresh noise before each step; None for none, which is the deterministic sampler of EDM.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithms 1 and 2. Departs from it in: it integrates x / alpha in kappa
        whatever the schedule, which is Algorithm 1 where alpha = 1; from alpha = 0, where kappa is infinite, the step
        is the trapezoid in alpha / sigma.
    """

    churn: Churn | None = None
    order: ClassVar[int] = 2

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.churn is not None

    def nfe(self, grid: Grid) -> int:
        """Two calls a step, one for a last step to sigma = 0."""
        return 2 * grid.steps - (0 if bool(grid.at(-1).sigma > 0) else 1)

    def init(self, x: Tensor, grid: Grid) -> None:
        """Remember nothing."""

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: None, noise: NoiseSource | None = None
    ) -> tuple[Tensor, None]:
        """Carry x from level i to level i + 1."""
        here, there = grid.at(i), grid.at(i + 1)
        if self.churn is not None:
            x, here = self.churn(x, grid, i, noise)
        r, b = ddim_weights(here, there)
        m = denoise(x, here)
        predicted = r * x + b * m
        if not bool(there.sigma > 0):
            return predicted, None
        return predicted + _trapezoid_weight(here, there, b) * (denoise(predicted, there) - m), None


def _trapezoid_weight(here: NoiseLevel, there: NoiseLevel, b: Number) -> Number:
    if not bool(here.alpha > 0):
        return b / 2
    return there.alpha * (here.kappa / there.kappa - 1) / 2
