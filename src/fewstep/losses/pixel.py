r"""Reconstruction: how far the numbers of each sample are from those of its target.

With noise that is independent of the data these are the terms that make all samples alike: for a sample F of noise z
and a target x, independent given the condition c,

.. math:: E |F - x|^2 = \mathrm{tr\,Var}_z(F \mid c) + |E[F \mid c] - E[x \mid c]|^2 + const .

They belong with pairs (a teacher's, inverted or transported noise), or with a small weight beside a distribution term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from fewstep.denoisers import Cond
from fewstep.errors import ConfigError
from fewstep.losses.base import Outcome, Role, SampleLoss, check_draws, difference

__all__ = ["L1", "L2", "Huber", "Paired"]


@dataclass(frozen=True)
class L1:
    """Mean absolute difference of the numbers of an image."""

    def __call__(self, fake: Tensor, target: Tensor, cond: Cond = None) -> Tensor:
        """Compare (b, *d) with (b, *d): (b,), data units; ShapeError for unlike shapes."""
        return difference(fake, target).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class L2:
    """Mean squared difference of the numbers of an image."""

    def __call__(self, fake: Tensor, target: Tensor, cond: Cond = None) -> Tensor:
        """Compare (b, *d) with (b, *d): (b,), data units squared; ShapeError for unlike shapes."""
        return difference(fake, target).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Huber:
    r"""Absolute difference, rounded off where it is small.

    .. math:: \rho(d) = \begin{cases} d^2 / 2\delta & |d| < \delta \\ |d| - \delta / 2 & \text{else} \end{cases}

    The slope is at most 1 whatever delta is, so that the weight of the term need not change with it.

    Args:
        delta: where the parabola ends, above 0, data units.

    Raises:
        ConfigError: if delta is not above 0.

    Source:
        Huber 1964, doi:10.1214/aoms/1177703732. Departs from it in: divided by delta.
    """

    delta: float = 0.1

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ConfigError(f"delta={self.delta:g} for Huber", "delta is above 0", "Use 0.1, or l1 for 0")

    def __call__(self, fake: Tensor, target: Tensor, cond: Cond = None) -> Tensor:
        """Compare (b, *d) with (b, *d), mean over the numbers of an image: (b,); ShapeError for unlike shapes."""
        size = difference(fake, target).abs()
        inner = size.clamp(max=self.delta)
        return (inner.square() / (2 * self.delta) + size - inner).flatten(1).mean(1)


@dataclass(frozen=True)
class Paired:
    """The mean loss of the first draws and their targets.

    Args:
        loss: of each pair.
    """

    loss: SampleLoss
    draws: ClassVar[int] = 1
    role: ClassVar[Role] = "paired"

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Average the losses (b,) of the first draws; other draws have no target and are not looked at."""
        check_draws(outcome, 1, "Paired")
        return self.loss(outcome.fake[0], outcome.target, outcome.cond).mean()
