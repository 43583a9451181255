r"""Grids to begin with: named spacings, and dynamic programming on the teacher's trajectories.

The trajectories know what a single step costs: a DDIM step from level i to level j of the fine grid misses the teacher
by

.. math:: e_{ij} = \frac{1}{s_j} \Big\| \hat x_j - \tfrac{\kappa_j}{\kappa_i} \hat x_i
          - \big(1 - \tfrac{\kappa_j}{\kappa_i}\big) m_i \Big\|_{rms}, \qquad s_j = \|\hat x_j\|_{rms}

which inner products of states and estimates give for all pairs at once, without another call. The grid of N steps with
the smallest sum of costs is a shortest path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep._part import Part
from fewstep.calibration.problem import Problem
from fewstep.calibration.trajectories import Trajectories
from fewstep.errors import ConfigError
from fewstep.noise import EDM, SPACINGS

__all__ = ["GITS", "grid_named", "shortest_path", "spaced", "step_costs"]

GITS = "gits"
_SAME = 1e-9  # relative difference of two ends that are one


def grid_named(name: str, problem: Problem, trajectories: Trajectories, steps: int) -> Tensor:
    """Make the levels of a grid.

    Args:
        name: "gits", or a spacing as on the command line, such as "karras:rho=10".
        problem: gives the ends.
        trajectories: what dynamic programming looks at.
        steps: of the grid.

    Returns:
        kappa, shape (steps + 1,), float64, descending.

    Raises:
        UnknownName: if there is no such spacing.
        ConfigError: if its ends are not those of the problem.
    """
    if name.strip() == GITS:
        return trajectories.kappa[shortest_path(step_costs(trajectories), steps)]
    return spaced(name, problem.kappa_max, problem.kappa_min, steps)


def spaced(name: str, kappa_max: float, kappa_min: float, steps: int) -> Tensor:
    """Make the levels of a named spacing between two ends.

    Args:
        name: as on the command line.
        kappa_max: first level.
        kappa_min: last level.
        steps: of the grid.

    Returns:
        kappa, shape (steps + 1,), float64.

    Raises:
        UnknownName: if there is no such spacing.
        ConfigError: if it has ends of its own.
    """
    schedule = EDM(sigma_min=kappa_min, sigma_max=kappa_max)
    kappa = Part.spelled(name).build(SPACINGS, "grid")(schedule, steps).levels.sigma
    wanted = torch.tensor([kappa_max, kappa_min], dtype=torch.float64)
    if bool(((kappa[[0, -1]] - wanted).abs() > _SAME * wanted).any()):
        raise ConfigError(
            f"The grid {name}, from kappa {kappa[0]:g} to {kappa[-1]:g}, between {kappa_max:g} and {kappa_min:g}",
            "A grid to begin with runs between any two levels above 0",
            "Use karras:rho=7, uniform_lam or gits; kappa_max and kappa_min (--kappa-max) move the ends",
        )
    return kappa


def step_costs(trajectories: Trajectories) -> Tensor:
    """The error of one DDIM step between any two levels.

    Args:
        trajectories: of the teacher.

    Returns:
        Costs, shape (levels, levels), float64; infinite where noise would not decrease.

    Source:
        Chen et al. 2024 (GITS), arXiv:2405.11326, Section 4, for the idea. Departs from it in: errors are relative to
        the size of the state that is missed, and no weight is put on their growth.
    """
    x, m = (torch.stack(part).double().flatten(1) for part in (trajectories.x, trajectories.denoised))
    xx, xm, mm = (part.cpu() for part in (x @ x.T, x @ m.T, (m * m).sum(1)))
    r = trajectories.kappa[None, :] / trajectories.kappa[:, None]
    own = xx.diagonal()
    # |x_j - r x_i - (1 - r) m_i|^2, row i, column j
    squares = own[None, :] + r**2 * own[:, None] + (1 - r) ** 2 * mm[:, None]
    squares = squares - 2 * r * xx - 2 * (1 - r) * xm.T + 2 * r * (1 - r) * xm.diagonal()[:, None]
    costs = (squares.clamp(min=0) / own[None, :]).sqrt()
    return torch.where(r < 1, costs, torch.inf)


def shortest_path(costs: Tensor, steps: int) -> list[int]:
    """The path of a given number of steps from the first level to the last with the smallest sum of costs.

    Args:
        costs: of every step, shape (levels, levels).
        steps: of the path, fewer than there are levels.

    Returns:
        Indices of its levels, ``steps + 1`` of them.
    """
    best, arrived = torch.full_like(costs[0], torch.inf), []
    best[0] = 0.0
    for _ in range(steps):
        best, origin = (best[:, None] + costs).min(0)
        arrived.append(origin)
    path = [len(costs) - 1]
    for origin in reversed(arrived):
        path.append(int(origin[path[-1]]))
    return path[::-1]
