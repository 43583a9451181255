"""How losses and critics see images: as they are, clipped, or as the 8-bit file that a viewer opens.

A network's output is grey at 1/512 above black where a file is black, and a loss that sees the difference spends itself
on what nobody will ever see; one that sees the file does not. Inside, rounding is passed over by the gradient. Where a
pixel is saturated the file no longer depends on it, so it feels no pull at all: to let pass only what pulls it back
would turn the noise of every gradient into grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from fewstep.errors import ConfigError
from fewstep.losses.base import Outcome, Role, Term, View
from fewstep.losses.bounds import Bounds

__all__ = ["VIEWS", "Viewed", "clamped", "eight_bit", "unchanged"]


def unchanged(x: Tensor) -> Tensor:
    """Look at images, or any other data, as they are."""
    return x


def clamped(x: Tensor) -> Tensor:
    """Clip images to [-1, 1]; the gradient is 1 inside, ends included, and 0 outside."""
    return x.clamp(-1, 1)


def eight_bit(x: Tensor) -> Tensor:
    r"""Look at images as an 8-bit file holds them.

    .. math:: u = \mathrm{clip}(\mathrm{round}(127.5\,(x + 1)), 0, 255), \qquad x' = u / 127.5 - 1

    Args:
        x: images of any shape, data units.

    Returns:
        Bitwise what the file gives back, in [-1, 1], shape of x, float32, or float64 as x. The gradient is that of
        :func:`clamped`.

    Source:
        Bengio, Léonard, Courville 2013, arXiv:1308.3432, the straight-through estimator. Departs from it in: nothing.
    """
    levels = ((x.detach().to(torch.float32) + 1) * 127.5).round().clamp(0, 255)
    way_back = clamped(x) - clamped(x).detach()  # exactly 0, with a gradient
    return levels / 127.5 - 1 + way_back


VIEWS: dict[str, View] = {"none": unchanged, "clamp": clamped, "eight_bit": eight_bit}


@dataclass(frozen=True)
class Viewed:
    """A term that sees samples, targets and real images through a view.

    Args:
        term: the term.
        view: the view; see VIEWS.

    Raises:
        ConfigError: for Bounds behind a view that clips, where it would be 0 whatever the samples are.
    """

    term: Term
    view: View = eight_bit

    def __post_init__(self) -> None:
        if isinstance(self.term, Bounds) and self.view is not unchanged:
            raise ConfigError("Bounds behind a view", "It looks at samples as they are", "Use Bounds without Viewed")

    @property
    def draws(self) -> int:
        """As the term."""
        return self.term.draws

    @property
    def role(self) -> Role:
        """As the term."""
        return self.term.role

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Compute the term of what is seen."""
        return self.term(outcome.through(self.view), generator)
