r"""What a solver is, and the algebra that all of them share.

The probability-flow ODE in terms of ``denoised`` :math:`m` is linear in the sample. With :math:`u = \alpha/\sigma`,

.. math:: \frac{d}{du}\frac{x}{\sigma} = m
   \quad\Longrightarrow\quad
   x' = \frac{\sigma'}{\sigma} x + \sigma' \int_u^{u'} m \, du ,

so every solver of this package is a way to approximate one integral of m. A constant m gives the mother of all steps,
``x' = r x + b m`` with ``r = sigma'/sigma`` and ``b = alpha' - alpha r``: finite at pure noise (u = 0) and at
clean data (sigma' = 0). Solvers of higher order replace m by m plus a slope; the slope is per unit of lam, and

.. math:: \sigma' \int_u^{u'} (\lambda - \lambda_u)\, du = \alpha'(h - 1 + e^{-h}), \quad h = \lambda' - \lambda

is the exact weight of a constant slope (:func:`slope_weight`).

One rule for all ends: **a slope in lam is used only between finite lam**. A step that reaches ``sigma = 0`` is a plain
DDIM step (it returns ``alpha' m``), and an estimate made at ``alpha = 0`` enters no slope in lam. It enters the step
that starts there and no later one: as the constant of a DDIM step, or, in solvers that correct, with half the weight of
a trapezoid in u, where pure noise is the finite point u = 0. EVODiff's default takes its slopes in a coordinate that is
bounded at both ends and needs no rule.

A solver is a frozen rule. What it remembers goes in and comes out of `step` as its state, so one object serves any
number of trajectories, and re-running a step (activation checkpointing does) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from fewstep.noise import Grid, NoiseLevel

__all__ = [
    "Denoise",
    "Estimate",
    "NoiseSource",
    "Solver",
    "ddim_weights",
    "earlier_share",
    "has_finite_lam",
    "inner",
    "move",
    "slope",
    "slope_weight",
]

Denoise: TypeAlias = Callable[[Tensor, NoiseLevel], Tensor]
NoiseSource: TypeAlias = Callable[[int, Tensor], Tensor]


class Solver(Protocol):
    """A frozen rule that carries samples along a grid."""

    @property
    def order(self) -> int:
        """Order of convergence of the rule with full history."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether a step draws fresh noise."""
        ...

    def nfe(self, grid: Grid) -> int:
        """Calls of the denoiser that a run over the grid makes."""
        ...

    def init(self, x: Tensor, grid: Grid) -> Any:
        """State before the first step; refuses grids that the rule cannot run."""
        ...

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Grid,
        i: int,
        state: Any,
        noise: NoiseSource | None = None,
    ) -> tuple[Tensor, Any]:
        """Carry x from level i to level i + 1; returns the sample there and the next state."""
        ...


class Estimate(NamedTuple):
    """A denoised estimate and the level it was made at."""

    denoised: Tensor
    level: NoiseLevel


def ddim_weights(here: NoiseLevel, there: NoiseLevel) -> tuple[Tensor, Tensor]:
    """Weights (r, b) of the exact step for a constant denoised, ``x' = r x + b m``; scalars."""
    r = there.sigma / here.sigma
    return r, there.alpha - here.alpha * r


def move(x: Tensor, denoised: Tensor, here: NoiseLevel, there: NoiseLevel) -> Tensor:
    r"""Move samples between levels along a straight line in the noise direction.

    .. math:: x' = \tfrac{\sigma'}{\sigma} x + (\alpha' - \alpha \tfrac{\sigma'}{\sigma})\, m

    Exact if the denoised estimate does not change on the way; otherwise of first order in the step.

    Args:
        x: samples at `here`, shape (b, *d), data units.
        denoised: estimate m of E[x0 | x], same shape and units.
        here: level of x, scalars, sigma > 0.
        there: level to reach, scalars; sigma = 0 gives alpha' * denoised.

    Returns:
        Samples at `there`, shape and dtype of x; differentiable in every argument.

    Source:
        Song, Meng, Ermon 2021, arXiv:2010.02502, Eq. 12 with zero variance. Departs from it in: nothing.
    """
    r, b = ddim_weights(here, there)
    return r * x + b * denoised


def inner(a: Tensor, b: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Inner product over some axes, summed in at least float32: a sum of squares of half precision would overflow.

    Args:
        a: shape (b, *d), floating point.
        b: shape (b, *d), floating point.
        axes: axes to sum over; none gives the plain product.

    Returns:
        The sums, shape of a with `axes` of length 1; float64 if a or b is, float32 otherwise.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    product = a.to(dtype) * b.to(dtype)
    return product.sum(axes, keepdim=True) if axes else product


def has_finite_lam(level: NoiseLevel) -> bool:
    """Whether a level lies strictly between pure noise and clean data."""
    return bool(level.alpha > 0) and bool(level.sigma > 0)


def slope(earlier: Estimate, later: Estimate) -> Tensor:
    """Change of denoised per unit of lam between two estimates at finite lam, shape (b, *d)."""
    return (later.denoised - earlier.denoised) / (later.level.lam - earlier.level.lam)


def slope_weight(here: NoiseLevel, there: NoiseLevel) -> Tensor:
    r"""Exact weight of a constant slope of denoised in lam over one step, a scalar.

    .. math:: \alpha' (h - 1 + e^{-h}), \qquad h = \lambda' - \lambda

    Args:
        here: start of the step, scalars, finite lam.
        there: end of the step, scalars, finite lam.

    Returns:
        Scalar in the dtype of the levels; about ``alpha' h^2 / 2`` for small h.
    """
    h = there.lam - here.lam
    return there.alpha * (h + torch.expm1(-h))


def earlier_share(before: NoiseLevel, here: NoiseLevel, there: NoiseLevel) -> Tensor:
    r"""Share of the earlier of two slopes that makes a step exact for a denoised quadratic in lam.

    The slope of the step, between `here` and `there`, gets the rest. With c the :func:`slope_weight` over alpha',

    .. math:: w = \frac{h + 2 - h^2 / c}{h + h_-}, \qquad h = \lambda' - \lambda, \quad h_- = \lambda - \lambda_-

    Args:
        before: start of the previous step, scalars, finite lam.
        here: start of this step, scalars, finite lam.
        there: end of this step, scalars, finite lam.

    Returns:
        Scalar, 1/6 in the limit of small equal steps.

    Source:
        Zhao et al. 2023, arXiv:2302.04867, Eq. 8 and 10 for p = 2, B(h) = exp(h) - 1, solved by hand. Departs from it
        in: nothing; the terms are ordered by slopes.
    """
    h, h_before = there.lam - here.lam, here.lam - before.lam
    c = h + torch.expm1(-h)
    return (h + 2 - h**2 / c) / (h + h_before)
