r"""EVODiff as its authors' release computes it, oddities included.

This is the paper's rule, for comparison and for those who want its pictures. It is neither consistent (a constant
denoised is not integrated exactly: the last step multiplies it by 1.07 to 1.09 at 5 to 15 steps of
uniform lam) nor equivariant between schedules (it
reads the schedule's own clock). The rule to use is :class:`fewstep.solvers.EVODiff` without a variant.

The one addition: every quotient of inner products has a relative guard, so that a zero or constant channel gives a
finite step. The guard changes nothing while the denominator is above rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import BudgetError, LevelError
from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource, inner
from fewstep.solvers.coeffs import levels_of

__all__ = ["Pair", "PaperRule"]


class Pair(NamedTuple):
    """The estimates at the current level and one level earlier."""

    now: Tensor
    before: Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product per sample and channel, over the axes behind them; over all numbers of a sample of rank 1."""
    return inner(a, b, tuple(range(2 if a.ndim > 2 else 1, a.ndim)))


def _ratio(top: Tensor, bottom: Tensor, size: Tensor, otherwise: float, dtype: torch.dtype) -> Tensor:
    """Quotient clamped to [-2, 2]; `otherwise` where the bottom is rounding error, in `dtype`, of squared `size`."""
    healthy = bottom > (8 * torch.finfo(dtype).eps) ** 2 * size
    return torch.where(healthy, top / torch.where(healthy, bottom, 1.0), otherwise).clamp(-2, 2)


def _rho(later: Tensor, earlier: Tensor, s: _Step) -> Tensor:
    """How much of the earlier estimate the difference of two takes away, in their dtype."""
    similarity = _ratio(_dot(later, earlier), _dot(earlier, earlier), _dot(later, later), 1.0, later.dtype)
    return ((1 - s.w) * s.beta + s.w * similarity).to(later.dtype)


class _Step(NamedTuple):
    """The scalars of one step, float64."""

    a: Tensor
    b: Tensor
    h: Tensor
    r: Tensor
    sigma: Tensor
    beta: Tensor
    w: Tensor


def _scalars(grid: Grid, i: int) -> _Step:
    before, here, there = grid.at(i - 1), grid.at(i), grid.at(i + 1)
    h = there.alpha / there.sigma - here.alpha / here.sigma
    tau = (grid.t[i + 1] + grid.t[-1]) / (grid.t[0] + grid.t[-1])
    return _Step(
        a=there.sigma / here.sigma,
        b=there.sigma * h,
        h=h,
        r=(here.lam - before.lam) / (there.lam - here.lam),
        sigma=there.sigma,
        beta=((there.sigma / here.sigma) / (here.sigma / before.sigma)).sqrt(),
        w=(1 - tau**2) / 2,
    )


class _State(NamedTuple):
    """The scalars of all middle steps, and the two estimates at hand."""

    scalars: tuple[_Step, ...]
    pair: Pair | None = None


@dataclass(frozen=True)
class PaperRule:
    """Order 2, multistep, data prediction; one call a step, and one more to denoise at the end.

    Args:
        denoise_to_zero: return the denoised estimate at the last level, for one more call.

    Source:
        Li, Chen, Zeng 2025, arXiv:2509.26096, as computed by the authors' release. Departs from it in: guarded
        denominators, any tensor rank, a grid made in float64.
    """

    denoise_to_zero: bool
    order: ClassVar[int] = 2
    stochastic: ClassVar[bool] = False

    def nfe(self, grid: Grid) -> int:
        """One call a step, and one to denoise at the end; BudgetError for a single step."""
        if grid.steps < 2:
            raise BudgetError(
                f"EVODiff's paper variant on a grid of {grid.steps} step",
                "It looks one step back, so it needs 2 steps",
                "Take 2 or more steps, or the default variant, which runs from 1",
            )
        return grid.steps + int(self.denoise_to_zero)

    def init(self, x: Tensor, grid: Grid) -> _State:
        """Refuse grids that the rule cannot run; compute the scalars of the steps between the first and the last."""
        self.nfe(grid)
        if not all(level.is_inside for level in levels_of(grid)):
            raise LevelError(
                "EVODiff's paper variant on a grid that starts at alpha = 0 or ends at sigma = 0",
                "Its formulas need a finite lam at every level",
                "Use UniformLam with finite bounds, or the default variant",
            )
        return _State(tuple(_scalars(grid, i) for i in range(1, grid.steps - 1)))

    def step(
        self, denoise: Denoise, x: Tensor, grid: Grid, i: int, state: _State, noise: NoiseSource | None = None
    ) -> tuple[Tensor, _State]:
        """Carry x from level i to level i + 1."""
        if state.pair is None:
            x, pair = _first(denoise, x, grid)
        elif i + 1 < grid.steps:
            x, pair = _middle(denoise, x, grid, i, state.scalars[i - 1], state.pair)
        else:
            x, pair = _last(x, grid, state.pair), state.pair
            x = denoise(x, grid.at(-1)) if self.denoise_to_zero else x
        return x, _State(state.scalars, pair)


def _first(denoise: Denoise, x: Tensor, grid: Grid) -> tuple[Tensor, Pair]:
    here, there = grid.at(0), grid.at(1)
    before = denoise(x, here)
    a = there.sigma / here.sigma
    x = a * x + (there.alpha - here.alpha * a) * before
    return x, Pair(denoise(x, there), before)


def _middle(denoise: Denoise, x: Tensor, grid: Grid, i: int, s: _Step, state: Pair) -> tuple[Tensor, Pair]:
    m = state.now
    euler = s.a * x + s.b * m
    rho = _rho(m, state.before, s)
    d1 = m - rho * state.before
    pace = torch.minimum(torch.maximum(torch.sigmoid(0.25 * rho.abs()) * s.r, 0.25 * s.r), 1.5 * s.r)
    predicted = euler + s.b / 2 * d1 / pace

    ahead = denoise(predicted, grid.at(i + 1))
    d2 = ahead - _rho(ahead, m, s) * m
    blend = _blend(d1, d2, m, s)
    zeta = _zeta(predicted - euler - s.b / 2 * blend / pace, d1, state, s, grid.steps)
    return euler + s.b / 2 * blend / zeta, Pair(ahead, m)


def _blend(d1: Tensor, d2: Tensor, m: Tensor, s: _Step) -> Tensor:
    """Mix the backward and the forward difference so that the variance of the mix is small."""
    backward, forward = d1 / (s.r * s.h), s.r * d2 / s.h
    gap = forward - backward
    size = _dot(m, m) / s.h**2
    eta = 0.5 * _ratio(_dot(forward + backward, gap), _dot(gap, gap), size, 0.0, m.dtype)
    eta = (0.5 * torch.sigmoid(eta.abs())).to(m.dtype)
    return -(eta / s.r) * d1 + s.r * (1 - eta) * d2


def _zeta(rest: Tensor, d1: Tensor, state: Pair, s: _Step, steps: int) -> Tensor:
    """Scale of the correction; the release turns its sign round above 20 steps."""
    m = state.now
    size = _dot(m, m)
    zeta = (_ratio(_dot(rest, d1), _dot(d1, d1), size, 0.0, m.dtype) / (s.h * s.sigma)).abs()
    if steps <= 20:
        return torch.sigmoid(zeta - 0.5).to(m.dtype)
    change = (m - state.before) / s.h
    share = _ratio(_dot(m, change), _dot(change, change), size / s.h**2, 0.0, m.dtype)
    return torch.sigmoid(-(zeta - 0.5) * torch.sigmoid(share * (2 - s.a**2))).to(m.dtype)


def _last(x: Tensor, grid: Grid, state: Pair) -> Tensor:
    """The release's lower-order final step: the source of its contrast gain."""
    here, there = grid.at(-2), grid.at(-1)
    a = there.sigma / here.sigma
    b = there.alpha - here.alpha * a
    gain = 1 - (there.sigma * here.sigma).sqrt()
    factor = 1 - 0.5 * (a if bool(a < 0.5) else a - 0.5).sqrt()
    return gain * (a * x + b * state.now) + b / 2 * (state.now - factor * state.before)
