r"""Sliced Wasserstein distance: sorted projections of feature vectors, so every one-dimensional distance is exact.

.. math:: \mathrm{SW}_p(X, Y)^p = \mathrm{mean}_\theta \int_0^1 |F^{-1}_{\theta \cdot X}(u)
          - F^{-1}_{\theta \cdot Y}(u)|^p\, du

over random unit vectors. It sees more than two moments, unlike a Fréchet distance, and is too large for few rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import ConfigError
from fewstep.metrics.estimate import Estimate, jackknife
from fewstep.metrics.grouping import group_of
from fewstep.metrics.indexed import row_pair
from fewstep.metrics.summary import FeatureSet

__all__ = ["sliced_distance", "sliced_wasserstein"]


def sliced_wasserstein(gen: FeatureSet, ref: FeatureSet, projections: int = 128, seed: int = 0, p: int = 2) -> Estimate:
    """Measure the sliced Wasserstein distance between the kept rows of two sets.

    Args:
        gen: the generated images.
        ref: the reference, with rows, of the same features.
        projections: number of random directions.
        seed: of the directions; a part of the protocol.
        p: power of the distance, 1 or 2.

    Returns:
        The distance, in units of the features, with a jackknife interval over the generated images; the directions
        are the same for all of them.

    Raises:
        ConfigError: if projections < 1 or p is neither 1 nor 2.
        DataError: if a side has no rows, as statistics from an npz file have none.
        ShapeError: if the features differ in dimension.

    Source:
        Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3, Section 3. Departs from it in: unequal sizes, an interval.
    """
    x, y = _project(gen.rows, ref.rows, projections, seed, p)
    # Leaving rows out keeps the others in order, so everything is sorted once.
    order, y = x.argsort(1), y.sort(1).values
    x, group = x.gather(1, order), group_of(gen.row_index, gen.groups)[order]
    whole = _distance(x, y, p)
    counts = torch.bincount(group[0], minlength=gen.groups)
    if gen.groups < 2 or int(counts.min()) == 0:
        return Estimate(whole)
    left_out = [x[group != out].reshape(len(x), -1) for out in range(gen.groups)]
    return jackknife(whole, [_distance(kept, y, p) for kept in left_out])


def sliced_distance(x: Tensor, y: Tensor, projections: int = 128, seed: int = 0, p: int = 2) -> float:
    """Compute the sliced Wasserstein distance of two sets of vectors, of equal or unequal sizes.

    Args:
        x: shape (n, dim), n >= 1, any float dtype.
        y: shape (m, dim), m >= 1.
        projections: number of random directions.
        seed: of the directions.
        p: power of the distance, 1 or 2.

    Returns:
        The distance, in units of the vectors.

    Raises:
        ConfigError: if projections < 1 or p is neither 1 nor 2.
        ShapeError: if the shapes do not fit.
        DataError: if a side is empty.
        NonFiniteError: if a value is NaN or infinite.
    """
    x, y = _project(x, y, projections, seed, p)
    return _distance(x.sort(1).values, y.sort(1).values, p)


def _project(x: Tensor, y: Tensor, projections: int, seed: int, p: int) -> tuple[Tensor, Tensor]:
    """Project rows on random directions: (n, dim), (m, dim) -> (k, n), (k, m)."""
    if projections < 1 or p not in (1, 2):
        raise ConfigError(
            f"projections = {projections}, p = {p}", "At least one projection, and p is 1 or 2", "Change them"
        )
    x, y = row_pair(x, y, least=1)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, x.shape[1], dtype=torch.float64, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return directions @ x.mT, directions @ y.mT


def _distance(x: Tensor, y: Tensor, p: int) -> float:
    """Average the one-dimensional distances of sorted lines, (k, n) and (k, m), to the power p."""
    n, m = x.shape[1], y.shape[1]
    # Both quantile functions are steps, at multiples of m and of n on a ruler of n m parts; integers keep that exact.
    cuts = torch.unique(torch.cat([torch.arange(n) * m, torch.arange(m) * n]))
    widths = torch.diff(cuts, append=torch.tensor([n * m])).to(torch.float64) / (n * m)
    gaps = x[:, cuts // m] - y[:, cuts // n]
    return float((gaps.abs() ** p @ widths).mean() ** (1 / p))
