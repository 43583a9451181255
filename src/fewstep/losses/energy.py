r"""The energy score: a distribution term that needs neither pairs nor a critic, only draws of the same condition.

.. math:: S(F, x) = E\,|F - x|^\beta - \tfrac12\, E\,|F - F'|^\beta, \qquad 0 < \beta < 2,

with independent draws :math:`F, F'` of one condition and the Euclidean norm over a *whole* image or feature vector; a
sum of scores of single pixels would know nothing of how pixels go together. Its expectation over x is smallest where F
is distributed as x given the condition, and nowhere else, even though every condition comes with a single x.

Four things here:

* All draws of a condition count, also those of other rows of the batch that are told the same: with ten classes in a
  batch of 64 that is six times as many pairs with real samples as a row has of its own, and less noise in the gradient.
* Norms are rounded off, :math:`\rho(d) = (|d|^2 + \epsilon^2)^{\beta/2}`, so that gradients stay finite between equal
  images. Up to a constant this is :math:`\int (1 - e^{-t |d|^2})\, d\nu(t)` with a measure :math:`\nu \ge 0`, a mixture
  of Gaussian kernels of all widths, as the norm itself is, so the score stays strictly proper.
* A draw whose noise was paired with x is no independent draw. It is not held against x, only against the other draws;
  else the score would ask for more variety than the data have, by a quarter where nine tenths of the pair are learned.
* Spaces differ in scale. Distances are divided by a typical distance of the data, measured once: one that changed with
  the samples that are scored would move the minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewstep._cond import conditions_of, rows_of
from fewstep.denoisers import Cond
from fewstep.errors import ConfigError, ShapeError
from fewstep.features import Maps, PixelMaps
from fewstep.features.kernels import squared_distances
from fewstep.losses.base import Outcome, Role, check_draws, precise

__all__ = ["EnergyScore", "energy_score", "typical_distance"]

_SMOOTH = 1e-3  # epsilon, in units of the scale
_FLAT = 1e-3  # typical distance per number where all are alike


def energy_score(
    fake: Tensor,
    target: Tensor,
    condition: Tensor,
    beta: float = 1.0,
    smooth: float = _SMOOTH,
    *,
    tied: bool = False,
) -> Tensor:
    r"""Estimate the energy score of each target without bias.

    .. math:: S_j = \mathop{\mathrm{mean}}_{i} \rho(F_i - x_j)
              - \tfrac12 \mathop{\mathrm{mean}}_{i \ne i'} \rho(F_i - F_{i'}), \qquad
              \rho(d) = \bigl(|d|^2 + \epsilon^2\bigr)^{\beta / 2}

    over all draws i, i' of the condition of :math:`x_j`.

    Args:
        fake: k draws for each of b rows, shape (k, b, n).
        target: a draw of the data for each row, shape (b, n).
        condition: integers, shape (b,): rows of the same number have the same condition. Every condition has at least
            two draws, in one row or in several.
        beta: exponent in (0, 2).
        smooth: epsilon, in units of the vectors.
        tied: whether the first draw of each row is no independent one of the row's target; then the first mean leaves
            it out.

    Returns:
        Scores, shape (b,). Differentiable in fake and target, also where they are equal.

    Source:
        Gneiting, Raftery 2007, doi:10.1198/016214506000001437, Section 4.3, negated. Departs from it in: rho is
        rounded off.
    """

    def rho(x: Tensor, y: Tensor) -> Tensor:
        return (squared_distances(x, y) + smooth**2) ** (beta / 2)

    (k, b), draws = fake.shape[:2], fake.flatten(0, 1)
    own = (condition.repeat(k)[:, None] == condition).to(fake)  # [i, j]: draw i has the condition of target j
    other = 1 - torch.eye(k * b, dtype=fake.dtype, device=fake.device)
    held = own * other[:, :b] if tied else own
    n = own.sum(0)
    within = (own.mT @ (rho(draws, draws) * other) * own.mT).sum(1) / (n * (n - 1))
    return (held * rho(draws, target)).sum(0) / held.sum(0) - within / 2


def typical_distance(vectors: Tensor) -> float:
    r"""Measure how far samples typically are from each other.

    .. math:: s^2 = \frac{1}{b (b - 1)} \sum_{i \ne j} |v_i - v_j|^2 = 2\, \mathrm{tr\,Cov}(v)

    Args:
        vectors: shape (b, n) with b >= 2.

    Returns:
        Root mean squared distance; at least a thousandth per number, so that a space in which all are alike divides by
        no zero.

    Raises:
        ShapeError: if there are fewer than two.
    """
    b, n = vectors.shape
    if b < 2:
        raise ShapeError(
            f"{b} real samples to measure a typical distance", "At least 2 of them", "Measure it on a few hundred"
        )
    return float((2 * vectors.detach().var(0).sum()).clamp(min=n * _FLAT**2).sqrt())


@dataclass(frozen=True)
class EnergyScore:
    """The mean energy score over a batch and over spaces.

    Args:
        features: the spaces; every map of each is compared as one vector. None for the pixels, or numbers, alone.
        beta: exponent in (0, 2); 1 is the usual score, and smaller ones look more at small distances.
        draws: how many of each row the chain is asked for. One is enough where a batch has several rows of most
            conditions, or there are none; rows that are alone in their condition then go without a score.
        scales: unit of distances, for every map of every space; None for those of the maps. :meth:`fitted` measures
            them.

    Raises:
        ConfigError: if beta is outside its range, there is no space, or no draw.
        ShapeError: when called, if no condition has two draws.
    """

    features: Sequence[Maps] | None = None
    beta: float = 1.0
    draws: int = 2
    scales: tuple[tuple[float, ...], ...] | None = None
    role: ClassVar[Role] = "distribution"

    def __post_init__(self) -> None:
        if not 0 < self.beta < 2:
            raise ConfigError(
                f"An energy score with beta={self.beta:g}",
                "beta lies between 0 and 2, where the score is strictly proper",
                "Use beta=1",
            )
        if self.features is not None and not self.features:
            raise ConfigError(
                "An energy score over no features", "At least one space", "Leave features out to compare pixels"
            )
        if self.draws < 1:
            raise ConfigError(f"An energy score of {self.draws} draws", "At least 1", "Use 2")

    def fitted(self, real: Tensor, cond: Cond = None) -> EnergyScore:
        """Return the score with the typical distances of real samples (n, *d), of some conditions, for units."""
        with torch.no_grad():
            spaces = self._vectors(real, cond)
        return replace(self, scales=tuple(tuple(map(typical_distance, maps)) for maps in spaces))

    def __call__(self, outcome: Outcome, generator: Generator) -> Tensor:
        """Average the scores of all real samples; each scores the draws of its own condition."""
        check_draws(outcome, self.draws, "EnergyScore")
        outcome, condition = _with_two_draws(outcome)
        fakes, reals = self._vectors(*outcome.flat()), self._vectors(outcome.real, outcome.cond)
        scales = self.scales or [[1.0] * len(maps) for maps in reals]
        score = partial(self._of_map, condition=condition, tied=outcome.tied)
        spaces = [torch.stack([*map(score, *space)]).mean() for space in zip(fakes, reals, scales, strict=True)]
        return torch.stack(spaces).mean()

    def _vectors(self, images: Tensor, cond: Cond) -> list[list[Tensor]]:
        """Every map of every space as vectors (n, dim)."""
        spaces = self.features or (PixelMaps(),)
        return [[precise(found).flatten(1) for found in maps(images, cond)] for maps in spaces]

    def _of_map(self, fake: Tensor, real: Tensor, scale: float, *, condition: Tensor, tied: bool) -> Tensor:
        """Score draws (k * b, dim) by real samples (b, dim)."""
        centre = real.mean(0)  # distances do not change, and rounding is that of their size, not of the offset's
        fake, real = ((vectors - centre) / scale for vectors in (fake, real))
        with torch.autocast(fake.device.type, enabled=False):
            return energy_score(fake.reshape(-1, *real.shape), real, condition, self.beta, tied=tied).mean()


def _with_two_draws(outcome: Outcome) -> tuple[Outcome, Tensor]:
    """Leave out the rows whose condition has a single draw in the whole batch; returns the others' conditions too."""
    condition = conditions_of(outcome.cond, len(outcome.real), outcome.real.device)
    if len(outcome.fake) > 1:
        return outcome, condition
    rows = condition.bincount()[condition] > 1
    if not bool(rows.any()):
        raise ShapeError(
            f"One draw of each of {len(rows)} conditions, no two of which are the same",
            "An energy score compares two samples of a condition",
            "Make two draws (e2e.terms.energy.draws=2), or larger batches where conditions repeat",
        )
    fake, target, real = outcome.fake[:, rows], outcome.target[rows], outcome.real[rows]
    cond = rows_of(outcome.cond, rows)
    return outcome._replace(fake=fake, target=target, real=real, cond=cond), condition[rows]
