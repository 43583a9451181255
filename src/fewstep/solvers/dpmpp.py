"""DPM-Solver++, multistep: slopes of the last estimates in lam, one call a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fewstep.noise import Grid
from fewstep.solvers.coeffs import Level, Number, ddim_weights, exponential_moments, levels_of, nodes
from fewstep.solvers.multistep import Multistep, Plan, Row, ddim_row

__all__ = ["DPMpp2M", "DPMpp3M"]


def midpoint_row(here: Level, before: Level, there: Level) -> Row:
    r"""Second-order step with denoised extrapolated to the middle of the step.

    .. math:: x' = r x + b \left(m + \tfrac{h}{2}\, \tfrac{m - m_-}{\lambda - \lambda_-}\right)

    Args:
        here: start of the step.
        before: the level one step earlier.
        there: end of the step; all three strictly between noise and data.

    Returns:
        The row of x, m and m_-.
    """
    r, b = ddim_weights(here, there)
    half = (there.lam - here.lam) / (here.lam - before.lam) / 2
    return Row(r, b * (1 + half), (-b * half,))


def _plan(grid: Grid, order: int, rule: Callable[[Sequence[Level], Level], Row]) -> Plan:
    """Apply a rule to the levels of the estimates that each step may use, newest first, and to the level it reaches."""
    levels = levels_of(grid)
    return Plan(tuple(rule(nodes(levels, i, order), levels[i + 1]) for i in range(grid.steps)))


def _up_to_second(known: Sequence[Level], there: Level) -> Row:
    here, *before = known
    return midpoint_row(here, before[0], there) if before else ddim_row(here, there)


@dataclass(frozen=True)
class DPMpp2M(Multistep):
    """DPM-Solver++ of second order, multistep, on denoised estimates.

    Each step extrapolates the last two estimates to its own middle: see :func:`midpoint_row`. One call a step.

    Source:
        Lu et al. 2022, arXiv:2211.01095, Algorithm 2. Departs from it in: steps at infinite lam are DDIM steps.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        return _plan(grid, 2, _up_to_second)


@dataclass(frozen=True)
class DPMpp3M(Multistep):
    r"""DPM-Solver++ with the last three estimates, as its authors' code and its users have it.

    With :math:`d_1, d_2` the first and second divided difference of the estimates per step, made at m,

    .. math:: x' = r x + b m + \alpha' \tfrac{M_1}{h} d_1 + \tfrac12 \alpha' \tfrac{M_2}{h^2} d_2

    and M_j the moments of :func:`~fewstep.solvers.coeffs.exponential_moments`. The half is theirs: a quadratic would be
    integrated exactly without it, so the order is 2, with a smaller error than DPM-Solver++ 2M where denoised bends.
    :class:`~fewstep.solvers.UniPC` of order 3 has the whole weight. One call a step.

    Source:
        Lu et al. 2022, arXiv:2211.01095, Section 4 and its code (multistep_dpm_solver_third_update). Departs from it
        in: steps at infinite lam are DDIM steps, and the last steps are of no lower order unless they are such.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def plan(self, grid: Grid) -> Plan:
        """The weights of every step."""
        return _plan(grid, 3, _up_to_third)


def _up_to_third(known: Sequence[Level], there: Level) -> Row:
    if len(known) < 3:
        return _up_to_second(known, there)
    here, before, oldest = known
    r, b = ddim_weights(here, there)
    h = there.lam - here.lam
    first, last = (here.lam - before.lam) / h, (before.lam - oldest.lam) / h
    _, m1, m2 = exponential_moments(h, 3)
    slope, bend = there.alpha * m1 / h, there.alpha * m2 / h**2 / 2
    # d_2 = (D_0 - D_1) / (first + last), d_1 = D_0 + first * d_2, with D_0 and D_1 the slopes of the last two steps.
    curve = (bend + slope * first) / (first + last)
    of_first, of_last = (slope + curve) / first, -curve / last
    weights: tuple[Number, ...] = (-of_first + of_last, -of_last)
    return Row(r, b + of_first, weights)
