"""Small exact targets to calibrate on, in float64, and what several files ask of a fitted solver."""

from __future__ import annotations

from typing import Any

import torch
from contracts.inventory import f64
from contracts.problems import batch
from torch import Tensor

from fewstep.calibration import Problem
from fewstep.calibration.history import Base, shares_of, start_row
from fewstep.calibration.problem import levels_at
from fewstep.calibration.trajectories import Trajectories
from fewstep.denoisers import Denoiser, Gaussian, GaussianMixture
from fewstep.noise import EDM, Karras, LinearFlow, Schedule, VPLinear
from fewstep.sampling import sample
from fewstep.solvers import DDIM, DEIS, IPNDM, DPMpp2M, DPMpp3M, Multistep

__all__ = ["BASES", "GAUSSIAN", "LINE", "MIXTURE", "SCHEDULES", "ends_of", "exact", "levels", "problem", "shares"]

SCHEDULES: dict[str, Schedule] = {"ve": EDM(), "vp": VPLinear(), "flow": LinearFlow()}
# Memories of all kinds: none, denoised, noise estimates.
BASES: dict[str, Multistep] = {
    "ddim": DDIM(),
    "dpmpp_2m": DPMpp2M(),
    "dpmpp_3m": DPMpp3M(),
    "deis": DEIS(),
    "deis_2": DEIS(order=2),
    "deis_log": DEIS(variable="log_kappa"),
    **{f"ipndm_{order}": IPNDM(order=order) for order in (1, 2, 3, 4)},
}
GAUSSIAN = Gaussian(f64([0.3, -0.2]), f64([[0.5, 0.2], [0.2, 0.3]]))
LINE = Gaussian(f64([0.3]), 0.4)
MIXTURE = GaussianMixture(batch((4, 3), seed=5), 0.3)


def problem(denoiser: Denoiser | tuple[Denoiser, ...] = MIXTURE, n: int = 16, seed: int = 0, **more: Any) -> Problem:
    """Trajectories of an oracle of this file; of the mixture, if none is named."""
    first = denoiser[0] if isinstance(denoiser, tuple) else denoiser
    d = first.mean.shape if isinstance(first, Gaussian) else (3,)
    given = {"schedule": EDM(), "kappa_max": 40.0, "kappa_min": 0.01, **more}
    return Problem(denoiser if isinstance(denoiser, tuple) else (denoiser,), start=batch((n, *d), seed), **given)


def levels(own: Problem, steps: int, rho: float = 7.0) -> Tensor:
    """Karras levels between the ends of a problem, shape (steps + 1,)."""
    return Karras(rho=rho)(EDM(sigma_min=own.kappa_min, sigma_max=own.kappa_max), steps).levels.sigma


def exact(own: Problem, gaussian: Gaussian, steps: int) -> Trajectories:
    """Trajectories of a Gaussian from its solved ODE, at equal steps of log kappa."""
    kappa = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    kappa = own.kappa_max * (own.kappa_min / own.kappa_max) ** kappa
    schedule = EDM(sigma_max=1e3, sigma_min=1e-5)
    at = [schedule.level(k) for k in kappa]
    x = tuple(gaussian.flow(own.noise, at[0], level) for level in at)
    return Trajectories(kappa, x, tuple(gaussian(y, level) for y, level in zip(x, at, strict=True)), 0.0)


def shares(rule: Multistep, kappa: Tensor) -> tuple[tuple[Any, ...], ...]:
    """A base rule in the form of a table."""
    base, rows = Base.of(rule, kappa), [start_row(len(kappa) - 1)]
    for i in range(len(kappa) - 1):
        rows.append(base.row(i, rows))
    return shares_of(rows, kappa)


def ends_of(rule: Any, own: Problem, kappa: Tensor) -> list[Tensor]:
    """Samples over alpha at all levels, by the sampling loop, in the coordinates of the problem's schedule."""
    grid = levels_at(own.schedule, kappa)
    made = sample(own.denoisers[0], rule, grid, grid.levels.alpha[0] * own.noise, cond=own.cond).trajectory
    return [x / alpha for x, alpha in zip(made, grid.levels.alpha, strict=True)]
