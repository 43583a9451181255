r"""Spacings: rules that pick the levels of a grid.

A spacing is a rule ``(schedule, steps) -> Grid``. Its grid ends at the schedule's clean limit; ``end="zero"`` replaces
the last level by ``sigma = 0``. The chains of few-step models start at pure noise: see :class:`UniformFlow` and
:class:`PureNoise`. The rules of discrete models are in ``timesteps.py``, published levels in ``level_tables.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fewstep.errors import ConfigError, GridError, LevelError
from fewstep.noise.grid import Grid, check_grid
from fewstep.noise.schedules import Schedule

__all__ = [
    "End",
    "Explicit",
    "Karras",
    "PureNoise",
    "Spacing",
    "UniformFlow",
    "UniformLam",
    "UniformTime",
    "check_steps",
    "flow_grid",
    "grid_of",
]

End = Literal["limit", "zero"]


class Spacing(Protocol):
    """A rule that picks the levels of a grid."""

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` intervals on the schedule."""
        ...


def grid_of(schedule: Schedule, t: Tensor, end: str) -> Grid:
    """Turn times into a grid, whose last level ``end="zero"`` replaces by sigma = 0."""
    if end not in ("limit", "zero"):
        raise ConfigError(
            f"A grid with end={end!r}",
            "'limit' ends at the schedule's clean limit, 'zero' at sigma = 0",
            "Use one of the two",
        )
    if end == "zero":
        t = torch.cat([t[:-1], torch.zeros_like(t[-1:])])
    return check_grid(Grid(schedule.level(t), t))


def check_steps(steps: int) -> int:
    """Refuse grids without a step, and parts of steps."""
    if not isinstance(steps, int) or steps < 1:
        raise GridError(
            f"A grid of {steps} steps", "A grid has a whole number of steps, at least one", "Ask for steps >= 1"
        )
    return steps


def _lam_bounds(schedule: Schedule, lam_min: float | None, lam_max: float | None) -> tuple[float, float]:
    """Fill omitted bounds from the schedule and refuse what it does not cover."""
    given = [bound for bound in (lam_min, lam_max) if bound is not None and not math.isfinite(bound)]
    if given:
        raise LevelError(
            f"A bound of lam = {given[0]:g}",
            "Equal steps in lam or kappa need finite bounds",
            "Give finite ones; end='zero' finishes at sigma = 0, and UniformTime starts at alpha = 0",
        )
    lowest, highest = schedule.lam_range()
    low, high = lowest if lam_min is None else lam_min, highest if lam_max is None else lam_max
    if not math.isfinite(low):
        raise LevelError(
            f"{schedule} begins at lam = {low}, and no first lam was given",
            "Equal steps in lam or kappa need a finite first level",
            "Pass lam_min=-5 (or kappa_max=148), or use UniformTime",
        )
    clean = schedule.level(torch.zeros((), dtype=torch.float64)).lam.item()
    if low >= high or low < lowest - 1e-9 or high > clean:
        raise LevelError(
            f"Levels from lam = {low:g} to {high:g} on {schedule}",
            f"This schedule has lam from {lowest:g} to {highest:g}, noisy first",
            "Choose bounds inside that range, or widen the schedule",
        )
    return low, high


@dataclass(frozen=True)
class UniformLam:
    """Equal steps in lam, the grid of DPM-Solver++ and of EVODiff.

    Args:
        lam_min: first (noisy) lam; the schedule's own if omitted.
        lam_max: last (clean) lam; the schedule's own if omitted.
        end: "limit", or "zero" to replace the last level by sigma = 0.

    Source:
        Lu et al. 2022, arXiv:2211.01095, Section 4. Departs from it in: nothing.
    """

    lam_min: float | None = None
    lam_max: float | None = None
    end: End = "limit"

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` equal intervals of lam."""
        low, high = _lam_bounds(schedule, self.lam_min, self.lam_max)
        lam = torch.linspace(low, high, check_steps(steps) + 1, dtype=torch.float64)
        return grid_of(schedule, schedule.t_of_lam(lam), self.end)


@dataclass(frozen=True)
class Karras:
    r"""Levels whose kappa is a power of a line: dense near the clean end.

    .. math::
        \kappa_i = \left(\kappa_{max}^{1/\rho} +
                   \tfrac{i}{N} (\kappa_{min}^{1/\rho} - \kappa_{max}^{1/\rho})\right)^\rho

    Args:
        rho: 1 is uniform in kappa, 7 is EDM's choice.
        kappa_min: last kappa; the schedule's own if omitted.
        kappa_max: first kappa; the schedule's own if omitted.
        end: "limit", or "zero" to replace the last level by sigma = 0.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Eq. 5. Departs from it in: the clean limit is itself the last level;
        `end="zero"` replaces it instead of adding a level.
    """

    rho: float = 7.0
    kappa_min: float | None = None
    kappa_max: float | None = None
    end: End = "limit"

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` intervals, equal in ``kappa ** (1 / rho)``."""
        if not self.rho > 0:
            raise ConfigError(f"Karras spacing with rho={self.rho:g}", "rho is above 0", "Use 7, or 1 for equal steps")
        bounds = [None if k is None else -_log(k) for k in (self.kappa_max, self.kappa_min)]
        low, high = _lam_bounds(schedule, *bounds)
        first, last = math.exp(-low / self.rho), math.exp(-high / self.rho)
        ramp = torch.linspace(first, last, check_steps(steps) + 1, dtype=torch.float64)
        return grid_of(schedule, schedule.t_of_lam(-self.rho * ramp.log()), self.end)


@dataclass(frozen=True)
class UniformTime:
    """Equal steps of the schedule's own clock, from its noisy end (alpha = 0 where it has one).

    Args:
        end: "limit", or "zero" to end at t = 0.
    """

    end: End = "limit"

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` equal intervals of the clock."""
        clean, noisy = schedule.t_range()
        last = 0.0 if self.end == "zero" else clean
        return grid_of(schedule, torch.linspace(noisy, last, check_steps(steps) + 1, dtype=torch.float64), self.end)


def flow_grid(schedule: Schedule, tau: Tensor) -> Grid:
    r"""Make the grid from pure noise to clean data through levels that are given in tau.

    .. math:: \tau = \frac{\kappa}{1 + \kappa} = \frac{\sigma}{\alpha + \sigma}

    is 1 at pure noise, 0 at clean data, and the clock of :class:`LinearFlow`.

    Args:
        schedule: gives the coordinates of the levels in between.
        tau: those levels, shape (steps - 1,), float64, strictly descending between 1 and 0; differentiable.

    Returns:
        Grid of ``steps`` intervals; its first level is (0, 1) exactly, its last has sigma = 0.

    Raises:
        LevelError: if the schedule does not have a level.
        GridError: if tau does not descend.
    """
    noisy, between = schedule.t_range()[1], schedule.t_of_lam(torch.log1p(-tau) - tau.log())
    t = torch.cat([tau.new_tensor([noisy]), between, tau.new_tensor([0.0])])
    return check_grid(Grid(schedule.level(t), t).from_noise())


@dataclass(frozen=True)
class UniformFlow:
    """Equal steps of ``tau = kappa / (1 + kappa)`` from pure noise to clean data: the grid of few-step chains.

    It exists on any schedule, also on those whose own range ends at a finite kappa, as long as no level between its
    ends is beyond it (N steps ask for kappa up to N - 1), and visits the same kappa on all.
    On LinearFlow it is UniformTime(end="zero").
    """

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` equal intervals of tau."""
        return flow_grid(schedule, torch.linspace(1, 0, check_steps(steps) + 1, dtype=torch.float64)[1:-1])


@dataclass(frozen=True)
class PureNoise:
    """Any grid, begun at pure noise: its first level becomes (0, 1) exactly, and the others stay.

    Args:
        spacing: places the levels.
    """

    spacing: Spacing

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid of `steps` intervals whose first level holds no data."""
        return check_grid(self.spacing(schedule, steps).from_noise())


@dataclass(frozen=True)
class Explicit:
    """Exactly these times.

    Args:
        t: the schedule's clock at each level, noisy first (for EDM: its sigmas); 0 may be last.
    """

    t: tuple[float, ...]

    def __call__(self, schedule: Schedule, steps: int) -> Grid:
        """Grid through the given times; `steps` must be their number less one."""
        if len(self.t) != check_steps(steps) + 1:
            raise GridError(
                f"{len(self.t)} explicit times for a grid of {steps} steps",
                "A grid has one level more than steps",
                f"Ask for {len(self.t) - 1} steps, or give {steps + 1} times",
            )
        return grid_of(schedule, torch.tensor(self.t, dtype=torch.float64), "limit")


def _log(kappa: float) -> float:
    if not kappa > 0:
        raise LevelError(
            f"A Karras bound of kappa = {kappa:g}",
            "Its bounds are above 0",
            "Give the smallest level above 0, and end='zero' to finish at sigma = 0",
        )
    return math.log(kappa)
