"""DDIM: one denoised estimate, held constant over the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource, move

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM:
    r"""First-order exponential integrator of the probability-flow ODE.

    .. math::
        x_{i+1} = \tfrac{\sigma_{i+1}}{\sigma_i} x_i + (\alpha_{i+1} - \alpha_i \tfrac{\sigma_{i+1}}{\sigma_i}) m_i

    One call a step. In the coordinates ``x / alpha`` it is Euler's method in kappa.

    Source:
        Song, Meng, Ermon 2021, arXiv:2010.02502, Eq. 12 with eta = 0. Departs from it in: nothing.
    """

    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> None:
        """Remember nothing."""

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: None, noise: NoiseSource | None = None
    ) -> tuple[Tensor, None]:
        """Carry x from level i to level i + 1."""
        here, there = grid.at(i), grid.at(i + 1)
        return move(x, denoise(x, here), here, there), None
