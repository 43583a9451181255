"""What an objective on final samples is made of: outcomes, losses of pairs of images, and terms.

A *loss* compares images one by one and returns one number per image. A *term* sees the whole outcome of a training
step, several draws per condition among it, and returns the scalar that is weighted and minimised. Terms carry no
weight: the objective gives it. What a term does to diversity is its *role*:

============  ==========================================================================================
role          with noise that is independent of the data
============  ==========================================================================================
paired        draws every sample to its target: its minimum is the mean of the data, all samples alike
moment        draws the mean of the samples to the targets: neither taxes diversity nor makes any
distribution  has its minimum where samples and data are distributed alike given the condition
marginal      the same without the condition: where conditions hardly repeat, as captions, one
              sample for each, always the same, can be its minimum
reward        knows no data: its minimum is whatever is rewarded most
============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from fewstep._cond import repeated
from fewstep.denoisers import Cond
from fewstep.errors import ShapeError

__all__ = [
    "Outcome",
    "Role",
    "SampleLoss",
    "Term",
    "View",
    "check_draws",
    "difference",
    "precise",
]

Role: TypeAlias = Literal["paired", "moment", "distribution", "marginal", "reward"]
View: TypeAlias = Callable[[Tensor], Tensor]


class Outcome(NamedTuple):
    """What one training step made of noise, beside what it is compared with; data units (images in [-1, 1]).

    Attributes:
        fake: final samples, shape (k, b, *d): k draws for each of b conditions. Only the first draw is paired.
        target: what each first draw is paired with, shape (b, *d).
        real: real samples of the same conditions, shape (b, *d).
        cond: the conditions, b of each.
        tied: whether the noise of the first draws knows the real samples, which makes the two no independent draws.
        steps: steps from the noise to the samples; chains of another length make another distribution.
    """

    fake: Tensor
    target: Tensor
    real: Tensor
    cond: Cond = None
    tied: bool = False
    steps: int = 1

    @property
    def free(self) -> Tensor:
        """The draws that know nothing of the real samples but the condition: all, or all but the first."""
        return self.fake[int(self.tied) :]

    def through(self, view: View) -> Outcome:
        """See samples, targets and real images alike through a view."""
        return self._replace(fake=view(self.fake), target=view(self.target), real=view(self.real))

    def flat(self) -> tuple[Tensor, Cond]:
        """Return all draws as one batch (k * b, *d), draw by draw, and their conditions, repeated for each draw."""
        return self.fake.flatten(0, 1), repeated(self.cond, len(self.fake))


class SampleLoss(Protocol):
    """How far each sample is from its target."""

    def __call__(self, fake: Tensor, target: Tensor, cond: Cond = None) -> Tensor:
        """Compare samples (b, *d) with targets (b, *d), of conditions that only some losses look at: (b,)."""
        ...


class Term(Protocol):
    """A summand of an objective on final samples."""

    @property
    def draws(self) -> int:
        """The fewest draws per condition that it needs, at least 1."""
        ...

    @property
    def role(self) -> Role:
        """What it does to diversity; see the table above."""
        ...

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Compute the scalar () to minimise, with randomness, if it needs any, from a generator on the host."""
        ...


def check_draws(outcome: Outcome, least: int, who: str) -> None:
    """Refuse an outcome whose shapes do not belong together, or with too few draws.

    Args:
        outcome: what the term was given.
        least: the fewest draws per condition that it needs.
        who: name of the term, for the message.

    Raises:
        ShapeError: if fake is not (k, b, *d) with k >= least and targets and real images of shape (b, *d).
    """
    fake, target, real = (tuple(images.shape) for images in outcome[:3])
    if len(fake) >= 2 and fake[0] >= least and fake[1:] == target == real:
        return
    raise ShapeError(
        f"Samples of shape {fake}, targets of shape {target} and real images of shape {real} for {who}",
        f"Samples (k, b, *d) with k >= {least} draws per condition, targets and real images (b, *d)",
        f"Draw {least} samples of each condition and stack them in front",
    )


def difference(fake: Tensor, target: Tensor) -> Tensor:
    """Subtract targets from samples of the same shape, in float32 or better.

    Args:
        fake: samples, shape (b, *d).
        target: same shape.

    Returns:
        The difference, same shape.

    Raises:
        ShapeError: if the shapes differ, where broadcasting would compare every sample with every target.
    """
    if fake.shape != target.shape:
        raise ShapeError(
            f"Samples of shape {tuple(fake.shape)} and targets of shape {tuple(target.shape)}",
            "One target of the same shape for each sample",
            "Pass the first draw alone, (b, *d), and targets (b, *d)",
        )
    return precise(fake) - precise(target)


def precise(x: Tensor) -> Tensor:
    """Convert to float32 unless x is in float64: sums over an image lose small errors in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
