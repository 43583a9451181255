r"""What a solver is, and the algebra that all of them share.

The probability-flow ODE in terms of ``denoised`` :math:`m` is linear in the sample. With :math:`u = \alpha/\sigma`,

.. math:: \frac{d}{du}\frac{x}{\sigma} = m
   \quad\Longrightarrow\quad
   x' = \frac{\sigma'}{\sigma} x + \sigma' \int_u^{u'} m \, du ,

so every solver of this package is a way to approximate one integral of m. A constant m gives the mother of all steps,
``x' = r x + b m`` with ``r = sigma'/sigma`` and ``b = alpha' - alpha r``: finite at pure noise (u = 0) and at
clean data (sigma' = 0). Rules of higher order replace m by a polynomial through earlier estimates, in lam, or work with
the noise estimate and kappa instead (:mod:`fewstep.solvers.coeffs`).

One rule for all ends: **a polynomial in lam is used only between finite lam**. A step that reaches ``sigma = 0`` is a
plain DDIM step (it returns ``alpha' m``), and an estimate made at ``alpha = 0`` enters no polynomial. It enters the
step that starts there and no later one: as the constant of a DDIM step, or, in rules that correct, with half the weight
of a trapezoid in u, where pure noise is the finite point u = 0. Rules in kappa need this at ``alpha = 0`` only. No rule
lowers its order on the last steps because they are the last.

A solver is a frozen rule. What it remembers goes in and comes out of `step` as its state, so one object serves any
number of trajectories, and re-running a step (activation checkpointing does) changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.noise import Grid, NoiseLevel
from fewstep.solvers.coeffs import ddim_weights

__all__ = ["Denoise", "NoiseSource", "Solver", "drawn", "inner", "is_order", "move"]

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


def drawn(noise: NoiseSource | None, i: int, x: Tensor) -> Tensor:
    """Draw the noise of step i for samples x (b, *d); ConfigError where there is no source of it."""
    if noise is None:
        raise ConfigError(
            f"Step {i} of a stochastic rule without a noise source",
            "It draws fresh noise in this step",
            "Pass noise=SeededNoise(seeds)",
        )
    return noise(i, x)


def is_order(order: Any, known: Iterable[int]) -> bool:
    """Whether this is one of the orders that a rule has, and a whole number by type: 3.0 cannot cut a list."""
    return type(order) is int and order in known


def inner(a: Tensor, b: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Inner product over some axes, summed in at least float32: a sum of squares of half precision would overflow.

    Args:
        a: shape (b, *d), floating point.
        b: shape (b, *d), floating point.
        axes: axes to sum over; none gives the plain product.

    Returns:
        The sums, shape of a with `axes` of length 1; float64 if a or b is, float32 otherwise.
    """
    if a.dtype.itemsize < 4:
        a, b = a.float(), b.float()
    product = a * b
    return product.sum(axes, keepdim=True) if axes else product
