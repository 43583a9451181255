r"""Learned chains: the solver's own scalars as parameters, for one number of steps.

A chain of T steps has T - 1 levels of its own to choose and, in step i, i weights for its earlier estimates (see
:class:`~fewstep.solvers.TabulatedSolver`). :class:`LearnedChain` holds both; every value of its parameters is a legal
grid from pure noise to clean data and a solver that is exact for constants. Their gradient comes out of `sample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.errors import CheckpointError, FewstepError, GridError
from fewstep.noise import Grid, Schedule, flow_grid
from fewstep.solvers import TabulatedSolver

__all__ = ["LearnedChain", "from_table"]

T = TypeVar("T")


class LearnedChain(nn.Module):
    r"""Levels and multistep weights of a chain of T steps.

    .. math:: \tau_i = \sum_{j \ge i} \mathrm{softmax}(g)_j, \quad \tau = \tfrac{\kappa}{1 + \kappa}

    so the levels descend from 1 to 0 by construction. Parameters are float64 and small; the grid stays on the host.

    Args:
        grid: where to begin: a grid from pure noise to sigma = 0. The weights begin at 0, so the chain begins as DDIM.

    Raises:
        GridError: if the grid starts or ends elsewhere.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        alpha, sigma = (part.detach() for part in grid.levels)
        tau = sigma / (alpha + sigma)
        if tau[0] != 1 or tau[-1] != 0:
            raise GridError(
                f"A grid from tau = {tau[0]:g} to {tau[-1]:g}",
                "A learned chain goes from pure noise, tau = 1, to clean data, tau = 0",
                "Begin with UniformFlow(), or wrap a spacing with end='zero' in PureNoise",
            )
        self.gaps = nn.Parameter((tau[:-1] - tau[1:]).log())
        self.weights = nn.Parameter(torch.zeros(grid.steps * (grid.steps - 1) // 2, dtype=torch.float64))

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return self.gaps.shape[0]

    @property
    def tau(self) -> Tensor:
        """The levels between the two ends, shape (T - 1,), float64, on the host; differentiable."""
        shares = self.gaps.to("cpu", torch.float64).softmax(0)
        return shares.flip(0).cumsum(0).flip(0)[1:]

    def grid(self, schedule: Schedule) -> Grid:
        """The levels in a schedule's coordinates; differentiable.

        Args:
            schedule: of the denoiser.

        Returns:
            Grid of T steps.

        Raises:
            LevelError: if the schedule does not reach a level.
        """
        return flow_grid(schedule, self.tau)

    def solver(self) -> TabulatedSolver:
        """The rule with the weights of now; they carry their gradient."""
        rows = self._rows(self.weights.to("cpu", torch.float64).unbind())
        return TabulatedSolver(tuple(map(tuple, rows)))

    def table(self) -> dict[str, Any]:
        """Write the numbers of now down, as ``Chain.learned`` keeps them for each number of steps.

        Returns:
            {"tau": levels, "weights": rows}, plain numbers that survive JSON bit for bit.
        """
        return {"tau": self.tau.tolist(), "weights": self._rows(self.weights.tolist())}

    def _rows(self, flat: Sequence[T]) -> list[list[T]]:
        """Cut a list of weights into rows of one, two, three..."""
        return [list(flat[i * (i - 1) // 2 : i * (i + 1) // 2]) for i in range(1, self.steps)]


def from_table(table: Mapping[str, Any], schedule: Schedule) -> tuple[TabulatedSolver, Grid]:
    """Build what :meth:`LearnedChain.table` wrote down.

    Args:
        table: "tau" and "weights".
        schedule: of the denoiser.

    Returns:
        Solver and grid, equal to those of the module bit for bit.

    Raises:
        CheckpointError: if the table does not describe a chain.
    """
    try:
        solver = TabulatedSolver(tuple(tuple(float(c) for c in row) for row in table["weights"]))
        grid = flow_grid(schedule, torch.tensor(table["tau"], dtype=torch.float64))
        solver.init(torch.zeros(1), grid)
    except (KeyError, TypeError, ValueError, FewstepError) as error:
        raise CheckpointError(
            f"A learned table that cannot be read ({type(error).__name__}: {error})",
            "It has descending tau between 1 and 0, and a row of weights for every step after the first",
            "Use what LearnedChain.table() wrote",
        ) from error
    return solver, grid
