r"""The energy score: a distribution term that needs neither pairs nor a critic, only two draws of each condition.

.. math:: S(F, x) = E\,|F - x|^\beta - \tfrac12\, E\,|F - F'|^\beta, \qquad 0 < \beta < 2,

with independent draws :math:`F, F'` of one condition and the Euclidean norm over a *whole* image or feature vector; a
sum of scores of single pixels would know nothing of how pixels go together. Its expectation over x is smallest where F
is distributed as x given the condition, and nowhere else, even though every condition comes with a single x.

Three things keep that true here:

* Norms are rounded off, :math:`\rho(d) = (|d|^2 + \epsilon^2)^{\beta/2}`, so that gradients stay finite between equal
  images. Up to a constant this is :math:`\int (1 - e^{-t |d|^2})\, d\nu(t)` with a measure :math:`\nu \ge 0`, a mixture
  of Gaussian kernels of all widths, as the norm itself is, so the score stays strictly proper.
* A draw whose noise was paired with x is no independent draw. It is not held against x, only against the other draws;
  else the score would ask for more variety than the data have, by a quarter where nine tenths of the pair are learned.
* Spaces differ in scale. Distances are divided by a typical distance between the *other* real samples of the batch,
  which knows neither the x that is scored nor any weights, so minima stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep.errors import ConfigError, ShapeError
from fewstep.features import Maps, PixelMaps
from fewstep.losses.base import Outcome, Role, check_draws, precise

__all__ = ["EnergyScore", "energy_score", "typical_distance"]

_SMOOTH = 1e-3  # epsilon, in units of the scale
_FLAT = 1e-3  # typical distance per number where all targets are alike


def energy_score(
    fake: Tensor,
    target: Tensor,
    scale: Tensor | float = 1.0,
    beta: float = 1.0,
    smooth: float = _SMOOTH,
    *,
    tied: bool = False,
) -> Tensor:
    r"""Estimate the energy score of each target without bias.

    .. math:: \frac1k \sum_i \rho(F_i - x) - \frac{1}{k (k - 1)} \sum_{i < j} \rho(F_i - F_j), \qquad
              \rho(d) = \bigl(|d|^2 / s^2 + \epsilon^2\bigr)^{\beta / 2}

    Args:
        fake: k >= 2 draws for each of b conditions, shape (k, b, n).
        target: a draw of the data for each condition, shape (b, n).
        scale: s, a number or shape (b,), units of the data.
        beta: exponent in (0, 2).
        smooth: epsilon, in units of s.
        tied: whether the first draw is no independent one; then the first mean runs over the others.

    Returns:
        Scores, shape (b,). Differentiable in fake and target, also where they are equal.

    Source:
        Gneiting, Raftery 2007, doi:10.1198/016214506000001437, Section 4.3, negated. Departs from it in: rho is
        rounded off.
    """

    def rho(d: Tensor) -> Tensor:
        return (d.square().sum(-1) / scale**2 + smooth**2) ** (beta / 2)

    i, j = torch.triu_indices(len(fake), len(fake), offset=1, device=fake.device)
    return rho(fake[int(tied) :] - target).mean(0) - rho(fake[i] - fake[j]).mean(0) / 2


def typical_distance(vectors: Tensor) -> Tensor:
    r"""Measure, for each of some vectors, how far the others typically are from each other.

    .. math:: s_i^2 = \frac{1}{(b - 1)(b - 2)} \sum_{j, k \ne i} |v_j - v_k|^2 = 2\, \mathrm{tr\,Cov}(v_{j \ne i})

    Args:
        vectors: shape (b, n) with b >= 3.

    Returns:
        Root mean squared distances, shape (b,), without gradient; at least a thousandth per number, so that a space in
        which all are alike divides by no zero.

    Raises:
        ShapeError: if there are fewer than three.
    """
    b, n = vectors.shape
    if b < 3:
        raise ShapeError(
            f"{b} real samples to measure a typical distance of the others",
            "At least 3 of them in a batch",
            "Use a larger batch, or give the energy score a fixed scale=",
        )
    vectors = vectors.detach()
    squares = (vectors - vectors.mean(0)).square().sum(1)
    variance = (squares.sum() - squares * b / (b - 1)) / (b - 2)  # of all but one, from the sums over all
    return (2 * variance).clamp(min=n * _FLAT**2).sqrt()


@dataclass(frozen=True)
class EnergyScore:
    """The mean energy score over a batch and over spaces, each space in units of its own typical distance.

    Args:
        features: the spaces; every map of each is compared as one vector. None for the pixels, or numbers, alone.
        beta: exponent in (0, 2); 1 is the usual score, and smaller ones look more at small distances.
        scale: a fixed typical distance for all spaces, or None to measure it on the real samples of the batch.

    Raises:
        ConfigError: if beta or scale is outside its range, or there is no space.
        ShapeError: when called, if there are fewer than 2 draws, or fewer than 3 real samples and no scale.
    """

    features: Sequence[Maps] | None = None
    beta: float = 1.0
    scale: float | None = None
    draws: ClassVar[int] = 2
    role: ClassVar[Role] = "distribution"

    def __post_init__(self) -> None:
        if not 0 < self.beta < 2 or (self.scale is not None and not self.scale > 0):
            raise ConfigError(
                f"An energy score with beta={self.beta:g} and scale={self.scale}",
                "beta lies between 0 and 2, where the score is strictly proper; the scale is above 0",
                "Use beta=1 and scale=None",
            )
        if self.features is not None and not self.features:
            raise ConfigError(
                "An energy score over no features", "At least one space", "Leave features out to compare pixels"
            )

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Average the scores of all draws; each real sample scores the draws of its own condition."""
        check_draws(outcome, 2, "EnergyScore")
        spaces = self.features or (PixelMaps(),)
        return torch.stack([self._of_space(maps, outcome) for maps in spaces]).mean()

    def _of_space(self, maps: Maps, outcome: Outcome) -> Tensor:
        """Score the outcome in every map of one space, and average."""
        pairs = zip(maps(*outcome.flat()), maps(outcome.real, outcome.cond), strict=True)
        return torch.stack([self._of_map(*pair, outcome.tied).mean() for pair in pairs]).mean()

    def _of_map(self, fake: Tensor, real: Tensor, tied: bool) -> Tensor:
        """Score draws (k * b, ...) by real samples (b, ...): (b,)."""
        real = precise(real).flatten(1)
        fake = precise(fake).reshape(-1, *real.shape)
        scale = typical_distance(real) if self.scale is None else self.scale
        return energy_score(fake, real, scale, self.beta, tied=tied)
