"""UniPC: predict as DPM-Solver++ does, then correct with the estimate that the next step makes anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fewstep.noise import Grid
from fewstep.solvers.base import (
    Denoise,
    Estimate,
    NoiseSource,
    earlier_share,
    has_finite_lam,
    move,
    slope,
    slope_weight,
)
from fewstep.solvers.dpmpp import extrapolate

__all__ = ["UniPC"]


class _Taken(NamedTuple):
    """The step that was taken last: what a corrector needs to take it again.

    Attributes:
        start: samples at its beginning.
        now: the estimate made there.
        before: the estimate one step earlier, if its lam is finite.
    """

    start: Tensor
    now: Estimate
    before: Estimate | None


@dataclass(frozen=True)
class UniPC:
    r"""UniPC of order 2 with B(h) = exp(h) - 1, on denoised estimates; one call a step.

    The predictor is that of DPM-Solver++ 2M. The corrector takes the same step again with the slope at its end,

    .. math:: x' = r x + b m + c \left[(1 - w)\, s + w\, s_-\right]

    with :math:`s` the slope over the step, :math:`s_-` the slope over the step before, c the exact slope weight and w
    the share that makes the step exact for quadratics. The first step has no s_- and takes the trapezoid. The sample of
    the last step is not corrected: that would cost one more call.

    Source:
        Zhao et al. 2023, arXiv:2302.04867, Algorithm 7 and 8, p = 2. Departs from it in: steps at infinite lam.
    """

    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def nfe(self, grid: Grid) -> int:
        """One call a step."""
        return grid.steps

    def init(self, x: Tensor, grid: Grid) -> _Taken | None:
        """No step taken yet."""
        return None

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Grid,
        i: int,
        state: _Taken | None,
        noise: NoiseSource | None = None,
    ) -> tuple[Tensor, _Taken]:
        """Correct the step to level i, then predict the one to level i + 1."""
        here, there = grid.at(i), grid.at(i + 1)
        now = Estimate(denoise(x, here), here)
        if state is not None:
            x = _correct(state, now)
        before = None if state is None else state.now
        return extrapolate(x, now, before, there), _Taken(x, now, before)


def _correct(taken: _Taken, end: Estimate) -> Tensor:
    """Take the last step again, knowing the estimate at its end."""
    start, now, before = taken
    if before is None or not has_finite_lam(before.level):
        return move(start, (now.denoised + end.denoised) / 2, now.level, end.level)
    share = earlier_share(before.level, now.level, end.level)
    mixed = (1 - share) * slope(now, end) + share * slope(before, now)
    return move(start, now.denoised, now.level, end.level) + slope_weight(now.level, end.level) * mixed
