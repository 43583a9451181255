r"""Fréchet distance of two summaries with an interval, its bias, and its extrapolation to infinitely many images.

The distance of n images is too large by about K/n even for a perfect generator, so it can be compared only between
sets of one size. :func:`frechet_bias` says how large that part is, :func:`fd_inf` takes it out, and
:func:`small_sample_note` is the warning to print.

Intervals are delete-a-group jackknifes over the generated images. They hold for the reference as it is: its own
sampling error is the same for all generators that are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from fewstep.errors import ConfigError, DataError
from fewstep.metrics.estimate import Estimate, bounded, jackknife
from fewstep.metrics.frechet import Moments, check_dims, frechet_distance, square_root
from fewstep.metrics.summary import FeatureSet

__all__ = ["fd", "fd_inf", "frechet_bias", "jackknife_groups", "small_sample_note"]


class _Reference:
    """The side of a distance that stays: its square root is taken once for many generated sets."""

    def __init__(self, moments: Moments) -> None:
        self.moments, self.root = moments, square_root(moments.cov)
        self._trace = moments.cov.trace()

    def distance(self, generated: Moments) -> float:
        """Fréchet distance by eigenvalues: three times faster than :func:`frechet_distance`, to 1e-7 where singular."""
        cov = generated.cov
        values = torch.linalg.eigvalsh(self.root @ cov @ self.root)
        floor = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
        cross = torch.where(values > floor, values, 0).sqrt().sum()
        shift = (generated.mean - self.moments.mean).square().sum()
        return float(shift + cov.trace() + self._trace - 2 * cross)


def fd(gen: FeatureSet, ref: FeatureSet, *, allow_singular: bool = False) -> Estimate:
    """Measure the Fréchet distance of generated images to a reference.

    Called FID only in the features of one particular Inception network.

    Args:
        gen: the generated images.
        ref: the reference, of the same features.
        allow_singular: also accept so few images that the covariance has no full rank. The distance is defined then,
            but its bias is as large as the distance of a good generator; for features with constant elements, and for
            demonstrations.

    Returns:
        The squared distance, with an interval over groups of generated images.

    Raises:
        DataError: if a side has fewer than two images, or at most `dim` images without `allow_singular`.
        ShapeError: if the features differ in dimension.

    Source:
        Heusel et al. 2017, arXiv:1706.08500, Eq. 6. Departs from it in: an interval.
    """
    _check_counts(gen, ref, allow_singular)
    value = frechet_distance(gen.moments(), ref.moments())
    groups = jackknife_groups(gen)
    if not groups:
        return Estimate(value)
    reference = _Reference(ref.moments())
    return bounded(jackknife(value, [reference.distance(gen.moments(without)) for without in groups]), 0.0)


def fd_inf(gen: FeatureSet, ref: FeatureSet) -> Estimate:
    r"""Extrapolate the Fréchet distance to infinitely many generated images.

    .. math:: d^2(n) \approx d^2_\infty + K / n

    through the distance of all images and the mean distance of halves, with the mean 1/n of these. The halves are all
    runs of neighbours on the ring of groups, so every group counts the same; that gives the extrapolation no more
    variance than the distance itself has. It may be negative. The part of K that the reference adds stays in.

    Args:
        gen: the generated images, at least 2 (dim + 1) of them, in at least four groups.
        ref: the reference, of the same features.

    Returns:
        The intercept, with the interval of a jackknife that extrapolates again without each of the groups.

    Raises:
        DataError: if there are too few images or groups of them.
        ShapeError: if the features differ in dimension.

    Source:
        Chong and Forsyth 2020, arXiv:1911.07023, Section 3.2. Departs from it in: a line through two sizes instead of
        least squares over 15, because the smaller ones bend away from it; balanced halves instead of random subsets;
        images from random instead of Sobol noise; an interval.
    """
    _check_counts(gen, ref, allow_singular=True)
    groups = jackknife_groups(gen)
    if len(groups) < 4 or gen.n < 2 * (gen.dim + 1):
        raise DataError(
            f"{gen.n} images in {len(groups)} usable groups for features of {gen.dim} dimensions",
            f"An extrapolation needs four groups and at least {2 * (gen.dim + 1)} images",
            "Generate more images, or take features with fewer dimensions",
        )
    reference, parts = _Reference(ref.moments()), gen.by_group

    @cache
    def point(chosen: frozenset[int]) -> tuple[float, float]:
        joined = Moments().merge(*[parts[group] for group in sorted(chosen)])
        return 1 / joined.n, reference.distance(joined)

    def intercept(ring: Sequence[int]) -> float:
        half, size = len(ring) // 2, len(ring)
        runs = [point(frozenset(ring[(start + step) % size] for step in range(half))) for start in range(size)]
        x_half, y_half = (sum(values) / size for values in zip(*runs, strict=True))
        x_all, y_all = point(frozenset(ring))
        value: float = y_all - x_all * (y_half - y_all) / (x_half - x_all)
        return value

    return jackknife(intercept(groups), [intercept([kept for kept in groups if kept != out]) for out in groups])


def frechet_bias(reference: Moments, n: int, n_reference: int | None = None) -> float:
    r"""Compute the mean Fréchet distance of a perfect generator that is judged by n images.

    .. math:: \frac{\mathrm{tr}\, C}{n} + \frac{1}{2 (n - 1)} \Big[ \sum_{ij} \frac{l_i l_j}{l_i + l_j}
              + \sum_i \frac{l_i}{2} \Big]

    for Gaussian features with eigenvalues l of the covariance C: the error of the mean, and the second order of the
    Bures distance :math:`\sum_{ij} |E_{ij}|^2 / (2 (l_i + l_j))` in the error E of the covariance, whose variances
    are :math:`(l_i l_j + \delta_{ij} l_i^2) / (n - 1)`. For :math:`C = l I` the bracket is :math:`l d (d + 1) / 2`.
    Right within 2 % for n above 10 dim, too small by a sixth at n = dim; heavier tails than a Gaussian's add to it.

    Args:
        reference: moments of the reference.
        n: generated images, at least 2.
        n_reference: images behind the reference, whose own errors add the same with their number; None counts the
            reference as exact.

    Returns:
        The bias, in squared units of the features.

    Raises:
        ConfigError: if a number of images is below 2.
    """
    counts = [n] if n_reference is None else [n, n_reference]
    if min(counts) < 2:
        raise ConfigError(f"A bias for {min(counts)} images", "A covariance needs two images", "Pass n >= 2")
    values = torch.linalg.eigvalsh(reference.cov).clamp(min=0)
    sums = values[:, None] + values
    pairs = torch.where(sums > 0, torch.outer(values, values) / sums, 0).sum()
    trace = values.sum()
    return sum(float(trace / count + (pairs + trace / 2) / (2 * (count - 1))) for count in counts)


def small_sample_note(n: int, dim: int, bias: float, value: float) -> str | None:
    """Say in a sentence what a small number of images does to a Fréchet distance.

    Args:
        n: generated images.
        dim: dimension of the features.
        bias: of :func:`frechet_bias`.
        value: the distance.

    Returns:
        The warning, or None if the bias is below a tenth of the distance and n is at least 10 dim and 2,000.
    """
    if n >= max(10 * dim, 2000) and bias <= value / 10:
        return None
    rank = " The covariance is singular: n is not above the dimension." if n <= dim else ""
    return (
        f"Fréchet distance of only {n:,} images in {dim} dimensions: {value:.4g}, where independent draws of the real "
        f"distribution would have about {bias:.3g} (less with classes in turn).{rank} Compare only with distances of "
        "the same n."
    )


def jackknife_groups(gen: FeatureSet) -> range:
    """Find the groups that can be left out one by one.

    Args:
        gen: the generated images.

    Returns:
        All groups, or none if there is one group only, one is empty, or what is left would be fewer than two images.
    """
    counts = [group.n for group in gen.by_group]
    usable = gen.groups > 1 and min(counts) > 0 and sum(counts) - max(counts) > 1
    return range(gen.groups if usable else 0)


def _check_counts(gen: FeatureSet, ref: FeatureSet, allow_singular: bool) -> None:
    check_dims(gen.dim, ref.dim)
    for side, summary in (("generated", gen), ("reference", ref)):
        least = 2 if allow_singular else summary.dim + 1
        if summary.n_known and summary.n < least:
            raise DataError(
                f"{summary.n} {side} images for features of {summary.dim} dimensions",
                f"A Fréchet distance needs at least {least} images" + ("" if allow_singular else ", dim + 1"),
                "Add images, take features with fewer dimensions, or pass allow_singular=True and read the bias"
                if not allow_singular
                else "Add images",
            )
