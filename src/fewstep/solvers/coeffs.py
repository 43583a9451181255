r"""Coefficients of solvers: plain float64 numbers on the host, made from a grid before the loop starts.

A number is a Python float, or a scalar tensor where the grid itself is being learned: the same formulas serve both, and
:func:`levels_of` decides which. The two integrals that all multistep rules approximate, in the coordinate in which
their integrand is a polynomial, are

.. math::
    \sigma' \int_u^{u'} m\, du = \alpha' \int_0^h e^{-(h - \tau)} m(\lambda + \tau)\, d\tau
    \qquad\text{and}\qquad \alpha' \int_\kappa^{\kappa'} \hat\varepsilon\, d\kappa

for denoised m and for the noise estimate; :func:`lagrange` turns the moments of such a measure into weights of the
estimates that are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from torch import Tensor

from fewstep.noise import Grid, NoiseLevel

__all__ = [
    "Level",
    "Number",
    "ddim_weights",
    "exponential_moments",
    "lagrange",
    "levels_of",
    "log",
    "nodes",
    "noise_ratio",
    "one_minus_exp",
    "sqrt",
    "steps_of",
]

Number: TypeAlias = float | Tensor


def log(value: Number) -> Number:
    """Natural logarithm."""
    return value.log() if isinstance(value, Tensor) else math.log(value)


def sqrt(value: Number) -> Number:
    """Square root."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def one_minus_exp(h: Number) -> Number:
    """``1 - exp(-h)`` without cancellation."""
    return -(-h).expm1() if isinstance(h, Tensor) else -math.expm1(-h)


class Level(NamedTuple):
    """A noise level as two numbers.

    Attributes:
        alpha: scale of the data.
        sigma: scale of the noise.
    """

    alpha: Number
    sigma: Number

    @property
    def lam(self) -> Number:
        """``log(alpha / sigma)``."""
        return log(self.alpha) - log(self.sigma)

    @property
    def kappa(self) -> Number:
        """``sigma / alpha``."""
        return self.sigma / self.alpha

    @property
    def is_inside(self) -> bool:
        """Whether the level lies strictly between pure noise and clean data, so that its lam is finite."""
        return bool(self.alpha > 0) and bool(self.sigma > 0)


def levels_of(grid: Grid) -> list[Level]:
    """Read the levels of a grid: as floats, or as scalar tensors if the grid carries a gradient."""
    alpha, sigma = grid.levels
    if alpha.requires_grad or sigma.requires_grad:
        return [Level(*pair) for pair in zip(alpha.unbind(), sigma.unbind(), strict=True)]
    return [Level(*pair) for pair in zip(alpha.tolist(), sigma.tolist(), strict=True)]


def steps_of(grid: Grid) -> list[tuple[Level, Level]]:
    """Read a grid as pairs of levels, (here, there) of every step."""
    return list(pairwise(levels_of(grid)))


def nodes(levels: Sequence[Level], i: int, count: int) -> list[Level]:
    """The levels of the last estimates that a rule in lam may use in step i, newest first.

    Args:
        levels: of the grid.
        i: index of the step.
        count: at most this many.

    Returns:
        Levels i, i - 1... as far as their lam is finite; level i alone if lam is infinite at either end of the step.
    """
    if not (levels[i].is_inside and levels[i + 1].is_inside):
        return [levels[i]]
    found = list(levels[max(0, i + 1 - count) : i + 1][::-1])
    return found if found[-1].is_inside else found[:-1]


def ddim_weights(here: Level | NoiseLevel, there: Level | NoiseLevel) -> tuple[Number, Number]:
    """Weights (r, b) of the exact step for a constant denoised, ``x' = r x + b m``."""
    r = there.sigma / here.sigma
    return r, there.alpha - here.alpha * r


def noise_ratio(here: Level, there: Level) -> Number:
    """``kappa' / kappa``, which is ``exp(-h)``: finite at pure noise and at clean data, where it is 0."""
    return there.sigma * here.alpha / (there.alpha * here.sigma)


def exponential_moments(h: Number, count: int) -> list[Number]:
    r"""Moments of the measure under which denoised is integrated in lam.

    .. math:: M_j = \int_0^h e^{-(h - \tau)} \tau^j d\tau, \qquad M_0 = 1 - e^{-h}, \quad M_j = h^j - j M_{j-1}

    Args:
        h: width of the step in lam; negative h gives the moments of ``exp(tau)`` up to a sign, for noise estimates.
        count: how many.

    Returns:
        M_0, M_1...
    """
    moments = [one_minus_exp(h)]
    for j in range(1, count):
        moments.append(h**j - j * moments[-1])
    return moments


def lagrange(points: Sequence[Number], moments: Sequence[Number]) -> list[Number]:
    r"""Weights that integrate the polynomial through some points exactly.

    .. math:: w_k = \int \ell_k \, d\mu, \qquad \ell_k(\tau) = \prod_{j \ne k} \frac{\tau - \tau_j}{\tau_k - \tau_j}

    Args:
        points: where values are known, all different.
        moments: of the measure: as many as points.

    Returns:
        One weight per point; they sum to the first moment.
    """
    weights = []
    for k, point in enumerate(points):
        basis: list[Number] = [1.0]  # coefficients of the product so far, constant first
        for j, other in enumerate(points):
            if j != k:
                gap = point - other
                shifted = [0.0, *basis]
                basis = [(s - other * b) / gap for s, b in zip(shifted, [*basis, 0.0], strict=True)]
        weights.append(sum((c * m for c, m in zip(basis, moments, strict=True)), start=0.0))
    return weights
