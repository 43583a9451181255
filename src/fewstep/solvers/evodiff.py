r"""EVODiff: weights that minimise the variance of a step, in closed form.

A reverse step is Gaussian, so its entropy is half the log-determinant of its conditional covariance. With the solver's
step in denoised form, what varies is the slope of denoised over the step, and there are two estimates of it: over the
step itself, :math:`s`, known once the next estimate is made, and over the step before, :math:`s_-`. Any mix

.. math:: (1 - \eta)\, s + \eta\, s_-, \qquad 0 \le \eta \le 1

is a consistent estimate of the slope, so the step keeps its second order whatever eta is, and eta is free to make the
mix vary least. Per sample, the minimum of :math:`\|(1-\eta) s + \eta s_-\|^2` is at

.. math:: \eta^* = \frac{\langle s,\, s - s_- \rangle}{\langle s - s_-,\, s - s_- \rangle}, \text{ clamped to } [0, 1].

Everything is a function of lam and of inner products over a whole sample: the rule does not know the schedule, the
channel basis or the tensor's rank. :mod:`fewstep.solvers.evodiff_paper` holds the rule of the authors' release.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, Estimate, NoiseSource, has_finite_lam, move, slope, slope_weight
from fewstep.solvers.dpmpp import extrapolate
from fewstep.solvers.evodiff_paper import PaperRule
from fewstep.solvers.unipc import Taken

__all__ = ["EVODiff"]


@dataclass(frozen=True)
class EVODiff:
    r"""Multistep solver with variance-optimal weights; one call a step, no reference, no training.

    The default predicts like DPM-Solver++ 2M and takes each step again with the slope of least variance as soon as the
    estimate at its end is known; that estimate is the next step's, so nothing is called twice. It is consistent (a
    constant denoised is integrated exactly), of order 2, runs from one step up, and starts at alpha = 0.

    Args:
        variant: "default", or "paper" for what the authors' release computes.
        order: 2; no other order exists.
        denoise_to_zero: paper variant only: end with one more call, at the last level.
        final_gain: default variant only: multiply the last sample by this. Above 1 it reproduces the contrast that
            the paper's last step adds; 1 adds none.

    Raises:
        ConfigError: for another order or variant, or an option that the variant does not have.

    Source:
        Li, Chen, Zeng 2025, arXiv:2509.26096. The paper variant departs from it in: guarded denominators. The default
        departs from it in: slopes in lam instead of weighted differences, so that the rule is consistent; eta without
        sigmoid and sign loss; exact exponential weights; inner products over the whole sample; a plain last step.
    """

    variant: Literal["default", "paper"] = "default"
    order: int = 2
    denoise_to_zero: bool = False
    final_gain: float = 1.0
    stochastic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        problems = {
            "order=2 only": self.order != 2,
            "variant='default' or variant='paper'": self.variant not in ("default", "paper"),
            "denoise_to_zero with variant='paper' only": self.denoise_to_zero and self.variant != "paper",
            "final_gain with variant='default' only": self.final_gain != 1 and self.variant == "paper",
            "a finite final_gain above 0": not 0 < self.final_gain < math.inf,
        }
        wrong = [allowed for allowed, hit in problems.items() if hit]
        if wrong:
            raise ConfigError(
                str(self),
                f"EVODiff takes {' and '.join(wrong)}",
                "Change that option; to end the default at clean data give the grid end='zero'",
            )

    def nfe(self, grid: Grid) -> int:
        """One call a step; the paper variant may add one to denoise at the end."""
        return self._rule.nfe(grid)

    def init(self, x: Tensor, grid: Grid) -> Any:
        """State before the first step."""
        return self._rule.init(x, grid)

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: Any, noise: NoiseSource | None = None
    ) -> tuple[Tensor, Any]:
        """Carry x from level i to level i + 1."""
        return self._rule.step(denoise, x, grid, i, state, noise)

    @property
    def _rule(self) -> PaperRule | _LeastVariance:
        return PaperRule(self.denoise_to_zero) if self.variant == "paper" else _LeastVariance(self.final_gain)


@dataclass(frozen=True)
class _LeastVariance:
    """The default rule."""

    final_gain: float

    def nfe(self, grid: Grid) -> int:
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> Taken | None:
        return None

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: Taken | None, noise: NoiseSource | None = None
    ) -> tuple[Tensor, Taken]:
        here, there = grid.at(i), grid.at(i + 1)
        now = Estimate(denoise(x, here), here)
        if state is not None:
            x = _correct(state, now)
        before = None if state is None else state.now
        ahead = extrapolate(x, now, before, there)
        if i + 1 == grid.steps and self.final_gain != 1:
            ahead = self.final_gain * ahead
        return ahead, Taken(x, now, before)


def _correct(taken: Taken, end: Estimate) -> Tensor:
    """Take the last step again with the slope of least variance."""
    start, now, before = taken
    if not has_finite_lam(now.level):
        # From pure noise there is no slope in lam: the trapezoid in alpha / sigma is finite there.
        return move(start, (now.denoised + end.denoised) / 2, now.level, end.level)
    steepness = slope(now, end)
    if before is not None and has_finite_lam(before.level):
        steepness = _least_variance(steepness, slope(before, now))
    return move(start, now.denoised, now.level, end.level) + slope_weight(now.level, end.level) * steepness


def _least_variance(s: Tensor, s_before: Tensor) -> Tensor:
    """The point of the segment between two slopes that is nearest to zero, per sample."""
    gap = s - s_before
    size = _dot(gap, gap)
    known = size > 0
    eta = torch.where(known, _dot(s, gap) / torch.where(known, size, 1.0), 0.0).clamp(0, 1)
    return s - eta * gap


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all numbers of a sample."""
    return (a * b).reshape(a.shape[0], -1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
