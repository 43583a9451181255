"""Heun: a trapezoid, two calls a step, with EDM's churn if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fewstep.noise import Grid
from fewstep.solvers.base import Denoise, NoiseSource
from fewstep.solvers.churn import Churn, Start, churned, starts
from fewstep.solvers.coeffs import Level, Number, levels_of
from fewstep.solvers.multistep import Row, combine, ddim_row

__all__ = ["Heun"]


class _Step(NamedTuple):
    """Where a step begins, its Euler step, and the weight of the difference of both estimates, if there is a second."""

    start: Start
    predict: Row
    weight: Number | None


@dataclass(frozen=True)
class Heun:
    r"""Trapezoidal rule for :math:`d(x/\alpha)/d\kappa = (x - \alpha m)/\sigma`, the second-order method of EDM.

    The difference of the two slopes is a difference of denoised estimates: with m at the start and m' at the end of
    the DDIM step,

    .. math:: x' = r x + b m + \tfrac12 \alpha' \left(\tfrac{\kappa}{\kappa'} - 1\right) (m' - m)

    Two calls a step; a step to sigma = 0 is the DDIM step and costs one.

    Args:
        churn: fresh noise before each step, or its amount alone; None for none: the deterministic sampler of EDM.

    Source:
        Karras et al. 2022, arXiv:2206.00364, Algorithms 1 and 2. Departs from it in: it integrates x / alpha in kappa
        whatever the schedule, which is Algorithm 1 where alpha = 1; from alpha = 0, where kappa is infinite, the step
        is the trapezoid in alpha / sigma.
    """

    churn: Churn | float | None = None
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "churn", churned(self.churn))

    @property
    def stochastic(self) -> bool:
        """Whether there is churn."""
        return self.churn is not None

    def nfe(self, grid: Grid) -> int:
        """Two calls a step, one for a last step to sigma = 0."""
        return 2 * grid.steps - (0 if bool(grid.at(-1).sigma > 0) else 1)

    def init(self, x: Tensor, grid: Grid) -> tuple[_Step, ...]:
        """Compute the weights."""
        ends = levels_of(grid)[1:]
        return tuple(_weights(start, there) for start, there in zip(starts(grid, self.churn), ends, strict=True))

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Grid,
        i: int,
        state: tuple[_Step, ...],
        noise: NoiseSource | None = None,
    ) -> tuple[Tensor, tuple[_Step, ...]]:
        """Carry x from level i to level i + 1."""
        start, predict, weight = state[i]
        x = start.churn(x, i, noise)
        m = denoise(x, start.level)
        predicted = combine(predict, x, m)
        if weight is None:
            return predicted, state
        # As a difference: the weight may be large, and a constant must stay exact.
        return predicted + weight * (denoise(predicted, grid.at(i + 1)) - m), state


def _weights(start: Start, there: Level) -> _Step:
    predict = ddim_row(start.numbers, there)
    return _Step(start, predict, _trapezoid_weight(start.numbers, there, predict.now) if there.sigma > 0 else None)


def _trapezoid_weight(here: Level, there: Level, b: Number) -> Number:
    if not here.alpha > 0:
        return b / 2
    return there.alpha * (here.kappa / there.kappa - 1) / 2
