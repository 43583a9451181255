"""DPM-Solver++ 2S: pairs of steps, each pair one second-order step with the middle level as its inner point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.noise import Grid
from fewstep.solvers.coeffs import Level, ddim_weights, levels_of, steps_of
from fewstep.solvers.multistep import Multistep, Plan, Row, ddim_row

__all__ = ["DPMpp2S"]


@dataclass(frozen=True)
class DPMpp2S(Multistep):
    r"""Singlestep solver of second order on denoised estimates: no history beyond a pair of steps.

    The first step of a pair is a DDIM step from x_0 to x_1; the second takes the whole pair again, from x_0 to x_2,

    .. math:: x_2 = r x_0 + b \left(m_0 + \tfrac{1}{2\rho} (m_1 - m_0)\right), \qquad
              \rho = \tfrac{\lambda_1 - \lambda_0}{\lambda_2 - \lambda_0}

    where :math:`x_0 = (x_1 - b_1 m_0) / r_1` is written in what is at hand. One call a step; the samples between the
    two steps of a pair are of first order, and an odd last step is a DDIM step, as is a step to sigma = 0.

    Source:
        Lu et al. 2022, arXiv:2211.01095, Algorithm 1, the inner point being a level of the grid. Departs from it in:
        steps at infinite lam are DDIM steps.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        levels = levels_of(grid)
        rows = []
        for i, (here, there) in enumerate(steps_of(grid)):
            whole = i % 2 == 1 and all(level.is_inside for level in levels[i - 1 : i + 2])
            rows.append(_second_of_pair(levels[i - 1], here, there) if whole else ddim_row(here, there))
        return Plan(tuple(rows))


def _second_of_pair(start: Level, middle: Level, end: Level) -> Row:
    _, b1 = ddim_weights(start, middle)
    _, b = ddim_weights(start, end)
    share = (end.lam - start.lam) / (middle.lam - start.lam) / 2
    decay = end.sigma / middle.sigma
    return Row(decay, b * share, (b * (1 - share) - decay * b1,))
