r"""Moment reconstruction: the mean of a condition's samples is drawn to its targets, single samples are not.

For independent draws of one condition the errors :math:`e_i = F_i - x` have, given x,

.. math:: E\,\langle e_i, e_j \rangle = |E[F \mid c] - x|^2, \quad i \ne j,

the squared error of the mean without the variance of the samples, which plain reconstruction adds and so taxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from fewstep.losses.base import Outcome, Role, check_draws, precise

__all__ = ["MomentReconstruction"]


@dataclass(frozen=True)
class MomentReconstruction:
    r"""Squared error of the mean sample, estimated without bias from pairs of different draws.

    .. math:: \frac{1}{n\,k (k - 1)} \sum_{i \ne j} \langle F_i - x, F_j - x \rangle

    Its estimate may be negative. It needs a distribution term beside it: alone it says nothing about single samples.
    """

    draws: ClassVar[int] = 2
    role: ClassVar[Role] = "moment"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Average over the batch and the n numbers of an image; ShapeError for fewer than 2 draws."""
        check_draws(outcome, 2, "MomentReconstruction")
        errors = (precise(outcome.fake) - precise(outcome.target)).flatten(2)
        k, _, n = errors.shape
        products = errors.sum(0).square() - errors.square().sum(0)  # (b, n): over i != j
        return products.sum(1).mean() / (n * k * (k - 1))
