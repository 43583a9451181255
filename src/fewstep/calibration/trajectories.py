r"""The teacher's trajectories: what every step of a fitted solver is held to.

They are solved in many steps and kept at every level with the estimates made there. Between two levels the state is
the cubic in :math:`\log\kappa` with the right values and slopes, :math:`d\hat x / d\log\kappa = \hat x - m`, so any
grid can be judged without another call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.calibration.problem import Problem, plain_grid, rms
from fewstep.denoisers import Cond
from fewstep.errors import ConfigError, NonFiniteError
from fewstep.noise import EDM, Karras, NoiseLevel
from fewstep.sampling import sample
from fewstep.solvers import DEIS

__all__ = ["Trajectories", "record"]

_TWICE = 1e-3  # of the estimates: two calls of a deterministic denoiser may differ by rounding alone
_CHECKED = 16  # trajectories that are asked twice, and solved a second time, in half as many steps
_APART = 0.5  # of the spread of their ends: two solutions that differ by more are no solutions


@dataclass(frozen=True)
class Trajectories:
    """Samples of the reference ODE at many levels, over alpha.

    Attributes:
        kappa: levels, shape (steps + 1,), float64, descending.
        x: samples at each, (n, *d).
        denoised: estimates made there.
        gap: RMSE between the ends and those of half as many steps, for the first few.
    """

    kappa: Tensor
    x: tuple[Tensor, ...]
    denoised: tuple[Tensor, ...]
    gap: float

    @property
    def end(self) -> Tensor:
        """The samples at the last level."""
        return self.x[-1]

    def part(self, chosen: slice) -> Trajectories:
        """Some of them."""
        x, denoised = (tuple(state[chosen] for state in states) for states in (self.x, self.denoised))
        return replace(self, x=x, denoised=denoised)

    def at(self, kappa: Tensor | float) -> Tensor:
        """The samples at any level between the first and the last."""
        wanted = float(kappa)
        i = min(max(int((self.kappa > wanted).sum()) - 1, 0), len(self.x) - 2)
        high, low = (math.log(self.kappa[j]) for j in (i, i + 1))
        s, width = (math.log(wanted) - high) / (low - high), low - high
        slopes = [width * (self.x[j] - self.denoised[j]) for j in (i, i + 1)]
        up, down = (1 + 2 * s) * (1 - s) ** 2, s * s * (3 - 2 * s)
        bend = s * (1 - s) ** 2 * slopes[0] - s * s * (1 - s) * slopes[1]
        return up * self.x[i] + down * self.x[i + 1] + bend


def record(problem: Problem, steps: int) -> Trajectories:
    """Solve the reference ODE for all trajectories of a problem.

    Args:
        problem: denoiser, noise and conditions.
        steps: of the reference, on Karras levels.

    Returns:
        The trajectories.

    Raises:
        ConfigError: if the denoiser gives two answers to one question, or the trajectories do not settle.
        NonFiniteError: if a sample or an estimate is NaN or infinite.
    """
    _refuse_random(problem)
    kappa, x, denoised = _solve(problem, steps, len(problem))
    _, coarse, _ = _solve(problem, max(steps // 2, 1), min(_CHECKED, len(problem)))
    few = x[-1][: len(coarse[-1])]
    gap, spread = rms(few - coarse[-1]), rms(few - few.mean(0))
    if gap > _APART * spread:
        raise ConfigError(
            f"Trajectories whose ends after {steps} and after {steps // 2} steps differ by {gap:.2g}, while they "
            f"spread over {spread:.2g}",
            "The reference ODE has settled: both are nearly the same",
            "Take more teacher steps, or less guidance; look at samples of the model first",
        )
    return Trajectories(kappa, x, denoised, gap)


def _solve(problem: Problem, steps: int, n: int) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """DEIS of order 3, with the estimate at the last level as well."""
    schedule = EDM(sigma_min=problem.kappa_min, sigma_max=problem.kappa_max)
    kappa = Karras()(schedule, steps).levels.sigma
    estimates: list[Tensor] = []

    def denoise(x: Tensor, level: NoiseLevel, cond: Cond = None) -> Tensor:
        estimates.append(problem.estimate(x, level.sigma))
        return estimates[-1]

    try:
        run = sample(denoise, DEIS(variable="log_kappa"), plain_grid(kappa), problem.noise[:n])
    except NonFiniteError as error:
        raise NonFiniteError(
            f"A trajectory of the teacher diverges ({error.given})", error.allowed, error.todo
        ) from None
    last = problem.estimate(run.x, problem.kappa_min)
    if not torch.isfinite(last).all():
        raise NonFiniteError(
            f"A trajectory of the teacher ends with an estimate that is NaN or infinite, at {problem.kappa_min:g}",
            "Samples and denoised estimates are finite",
            "Check the weights at that level, or end at a larger kappa_min",
        )
    return kappa, run.trajectory, (*estimates, last)


def _refuse_random(problem: Problem) -> None:
    few = problem.start[: max(_CHECKED, len(problem.denoisers))]
    middle = (problem.kappa_max * problem.kappa_min) ** 0.5
    once, again = (problem.estimate(middle * few, middle) for _ in range(2))
    if not torch.isfinite(once).all():
        return  # the solution says where
    if rms(once - again) > _TWICE * max(rms(once), 1e-3):
        raise ConfigError(
            f"A denoiser whose two answers to one question differ by {rms(once - again):.2g}",
            "Only a deterministic model can be calibrated",
            "Put the network into evaluation mode, network.eval(), and switch off whatever draws inside it",
        )
