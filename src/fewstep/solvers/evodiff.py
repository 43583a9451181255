r"""EVODiff: weights that minimise the variance of a step, in closed form.

A reverse step is Gaussian, so its entropy is half the log-determinant of its conditional covariance. With the solver's
step in denoised form, what varies is the slope of denoised over the step, and there are two estimates of it: over the
step itself, :math:`s`, known once the next estimate is made, and over the step before, :math:`s_-`. Any mix

.. math:: (1 - \eta)\, s + \eta\, s_-, \qquad 0 \le \eta \le 1

is a consistent estimate of the slope, so the step keeps its second order whatever eta is, and eta is free to make the
mix vary least. Per sample, the minimum of :math:`\|(1-\eta) s + \eta s_-\|^2` is at

.. math:: \eta^* = \frac{\langle s,\, s - s_- \rangle}{\langle s - s_-,\, s - s_- \rangle}, \text{ clamped to } [0, 1].

Slopes are taken per unit of a coordinate that is bounded at both ends, 0 for clean data and 1 for pure noise,

.. math:: c = \frac{\sigma}{\sigma + p\,\alpha} = \frac{1}{1 + p u}, \qquad u = \alpha/\sigma,

so that no weight grows without limit and none jumps when a grid reaches an end. A denoised estimate linear in c is
integrated exactly:

.. math:: \sigma' \int_u^{u'} (c - c_u)\, du = \tfrac{\sigma'}{p} \log(1 + p z / \sigma') - z, \qquad z = c_u\, b,

with b the weight of denoised in the DDIM step; -z at :math:`\sigma' = 0`. Everything is a function of kappa and of
inner products over a whole sample: the rule does not know the schedule, the channel basis or the tensor's rank.
:mod:`fewstep.solvers.evodiff_paper` holds the rule of the authors' release.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource, inner
from fewstep.solvers.coeffs import Level, Number, ddim_weights, levels_of, log1p
from fewstep.solvers.evodiff_paper import PaperRule
from fewstep.solvers.multistep import combine, ddim_row

__all__ = ["EVODiff"]

# p, the kappa at which the coordinate is half way, for data of unit scale. Chosen once among 0.5, 1, 2, 3, 4 and 8, on
# the exact targets of benchmarks/ and the bundled model: smaller pivots lose on smooth targets, larger on the ring.
_PIVOT = 2.0


@dataclass(frozen=True)
class EVODiff:
    r"""Multistep solver with variance-optimal weights; one call a step, no reference, no training.

    The default predicts with the last slope and takes each step again with the slope of least variance as soon as the
    estimate at its end is known; that estimate is the next step's, so nothing is called twice. It is consistent (a
    constant denoised is integrated exactly), of order 2, runs from one step up, from alpha = 0 and to sigma = 0, and
    its weights are continuous in the grid, ends included.

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
        departs from it in: slopes in a bounded coordinate instead of weighted differences, so that the rule is
        consistent; eta without sigmoid and sign loss; exact weights; inner products over the whole sample; no special
        last step.
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


class _Taken(NamedTuple):
    """The levels, and of the step that was taken last: where it began, the estimate there, the slope before it."""

    levels: list[Level]
    start: Tensor | None = None
    now: Tensor | None = None
    slope: Tensor | None = None


@dataclass(frozen=True)
class _LeastVariance:
    """The default rule."""

    final_gain: float

    def nfe(self, grid: Grid) -> int:
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> _Taken:
        return _Taken(levels_of(grid))

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: _Taken, noise: NoiseSource | None = None
    ) -> tuple[Tensor, _Taken]:
        levels, start, before, slope = state
        here, there = levels[i], levels[i + 1]
        now, last = denoise(x, grid.at(i)), None
        if start is not None and before is not None:
            last = (now - before) / (_coordinate(here) - _coordinate(levels[i - 1]))
            x = _ramp(start, before, levels[i - 1], here, _least_variance(last, slope))
        ahead = _ramp(x, now, here, there, last)
        if i + 1 == grid.steps and self.final_gain != 1:
            ahead = self.final_gain * ahead
        return ahead, _Taken(levels, x, now, last)


def _coordinate(level: Level) -> Number:
    """0 for clean data, 1 for pure noise."""
    return level.sigma / (level.sigma + _PIVOT * level.alpha)


def _ramp(x: Tensor, now: Tensor, here: Level, there: Level, slope: Tensor | None) -> Tensor:
    """Move x with a denoised estimate that changes at a constant rate in the coordinate; None is no change."""
    row = ddim_row(here, there)
    if slope is None:
        return combine(row, x, now)
    return combine(row._replace(earlier=(_ramp_weight(here, there),)), x, now, (slope,))


def _ramp_weight(here: Level, there: Level) -> Number:
    """Exact weight of a constant slope over one step."""
    z = _coordinate(here) * ddim_weights(here, there)[1]
    if not bool(there.sigma > 0):
        return -z
    return there.sigma / _PIVOT * log1p(_PIVOT * z / there.sigma) - z


def _least_variance(s: Tensor, s_before: Tensor | None) -> Tensor:
    """The point of the segment between two slopes that is nearest to zero, per sample."""
    if s_before is None:
        return s
    gap = s - s_before
    size = _dot(gap, gap)
    known = size > 0
    eta = torch.where(known, _dot(s, gap) / torch.where(known, size, 1.0), 0.0).clamp(0, 1)
    return s - eta.to(s.dtype) * gap


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all numbers of a sample."""
    return inner(a, b, tuple(range(1, a.ndim)))
