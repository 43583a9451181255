r"""Moment reconstruction: the mean of a condition's samples is drawn to that of the data, single samples are not.

For independent draws of one condition, which know nothing else of x,

.. math:: E\,\langle F_i, F_j \rangle - 2\, E\,\langle F_i, x \rangle + |x|^2 = |E[F \mid c] - x|^2, \quad i \ne j,

the squared error of the mean without the variance of the samples, which plain reconstruction adds and so taxes. A draw
whose noise was paired with x is left out of the second mean: there it would be rewarded without bound for resembling x.
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

    .. math:: \frac1n \Bigl( \frac{1}{k (k - 1)} \sum_{i \ne j} \langle F_i, F_j \rangle
              - \frac{2}{|free|} \sum_{i \in free} \langle F_i, x \rangle + |x|^2 \Bigr)

    Its estimate may be negative. It needs a distribution term beside it: alone it says nothing about single samples.
    """

    draws: ClassVar[int] = 2
    role: ClassVar[Role] = "moment"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Average over the batch and the n numbers of an image; ShapeError for fewer than 2 draws."""
        check_draws(outcome, 2, "MomentReconstruction")
        fake, real, k = precise(outcome.fake), precise(outcome.real), len(outcome.fake)
        products = (fake.sum(0).square() - fake.square().sum(0)) / (k * (k - 1))  # mean over i != j
        return (products - 2 * precise(outcome.free).mean(0) * real + real.square()).mean()
