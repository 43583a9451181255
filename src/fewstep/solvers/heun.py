"""Heun: a trapezoid, two calls a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.base import Denoise, NoiseSource, ddim_weights

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    r"""Trapezoidal rule for :math:`d(x/\alpha)/d\kappa = (x - \alpha m)/\sigma`, the second-order method of EDM.

    The difference of the two slopes is a difference of denoised estimates: with m at the start and m' at the end of
    the DDIM step,

    .. math:: x' = r x + b m + \tfrac12 \alpha' \left(\tfrac{\kappa}{\kappa'} - 1\right) (m' - m)

    Two calls a step; a step to sigma = 0 is the DDIM step and costs one.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithm 1. Departs from it in: it integrates x / alpha in kappa
        whatever the schedule, which is Algorithm 1 where alpha = 1; from alpha = 0, where kappa is infinite, the step
        is the trapezoid in alpha / sigma.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

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
        r, b = ddim_weights(here, there)
        m = denoise(x, here)
        predicted = r * x + b * m
        if not bool(there.sigma > 0):
            return predicted, None
        return predicted + _trapezoid_weight(here, there, b) * (denoise(predicted, there) - m), None


def _trapezoid_weight(here: NoiseLevel, there: NoiseLevel, b: Tensor) -> Tensor:
    if not bool(here.alpha > 0):
        return b / 2
    return there.alpha * (here.kappa / there.kappa - 1) / 2
