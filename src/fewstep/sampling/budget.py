"""From a budget of calls to a grid."""

from __future__ import annotations

import math

from fewstep.errors import BudgetError
from fewstep.noise import Grid, Schedule, Spacing
from fewstep.solvers import Solver

__all__ = ["grid_for"]


def grid_for(solver: Solver, spacing: Spacing, schedule: Schedule, nfe: int) -> Grid:
    """Make the longest grid that a solver can run within a number of calls.

    Args:
        solver: its `nfe(grid)` is what is spent.
        spacing: the rule that places the levels.
        schedule: where they are placed.
        nfe: calls of the denoiser that may be made.

    Returns:
        Grid with the most steps whose cost is at most `nfe`.

    Raises:
        BudgetError: if not even the shortest grid of the solver fits.
    """
    for steps in range(nfe, 0, -1):
        grid = spacing(schedule, steps)
        if _cost(solver, grid) <= nfe:
            return grid
    shortest = min(_cost(solver, spacing(schedule, steps)) for steps in (1, 2, 3))
    raise BudgetError(
        f"{nfe} calls for {solver}", f"Its shortest run makes {shortest}", f"Ask for --nfe {shortest} or more"
    )


def _cost(solver: Solver, grid: Grid) -> float:
    """Calls of a run; infinite where the grid is too short for the solver."""
    try:
        return solver.nfe(grid)
    except BudgetError:
        return math.inf
