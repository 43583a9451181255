r"""Maximum mean discrepancy of two sets of feature vectors, unbiased, with polynomial and Gaussian kernels.

.. math:: \mathrm{MMD}^2 = \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j)
          + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j) - \frac{2}{nm} \sum_{ij} k(x_i, y_j)

has the mean zero when both sets come from one distribution, whatever their sizes; single values may be negative. It is
called KID only in the features of one particular Inception network.

Kernel matrices are summed block by block in float64, so memory does not grow with the number of rows. A summary keeps
the rows of a random sample of its images (``FeatureSet.keep``), and these are compared: all of them at once, not 100
subsets of 1,000 with the standard deviation over the subsets, as torchmetrics does it. That standard deviation is of
subsets of 1,000 and overlapping ones; the interval here is of the number itself, over the generated images.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import ConfigError, DataError
from fewstep.features.kernels import Polynomial, gaussians, squared_distances
from fewstep.metrics.estimate import Estimate, jackknife
from fewstep.metrics.grouping import group_of
from fewstep.metrics.indexed import row_pair
from fewstep.metrics.summary import FeatureSet

__all__ = ["RBF", "Kernel", "Polynomial", "kernel_mmd", "kid", "median_distance", "mmd_rbf"]

_BLOCK = 1000  # rows; a block of the kernel matrix takes 8 MB
_MEDIAN_ROWS = 1000


class Kernel(Protocol):
    """A positive definite function of two vectors."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluate all pairs: x of shape (n, dim), y of shape (m, dim) -> (n, m)."""
        ...


@dataclass(frozen=True)
class RBF:
    r"""Mean of Gaussian kernels of several widths, with k(x, x) = 1.

    .. math:: k(x, y) = \frac{1}{B} \sum_b \exp\Big( -\frac{|x - y|^2}{2 s_b^2} \Big)

    Args:
        bandwidths: the widths s, in units of the features.

    Raises:
        ConfigError: if there are none, or one is not above 0.

    Source:
        Gretton et al. 2012, JMLR 13, Section 8; several widths as in Li et al. 2015, arXiv:1502.02761, Section 2.2.
    """

    bandwidths: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.bandwidths or min(self.bandwidths) <= 0:
            raise ConfigError(
                f"bandwidths = {self.bandwidths}", "At least one width, all above 0", "Use median_distance of rows"
            )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluate all pairs: x of shape (n, dim), y of shape (m, dim) -> (n, m)."""
        centre = y.mean(0)  # distances do not change, and rounding is that of their size, not of the offset's
        return gaussians(squared_distances(x - centre, y - centre), self.bandwidths)


def median_distance(rows: Tensor) -> float:
    """Find the median distance between two of the first 1,000 rows.

    Args:
        rows: feature vectors, shape (n, dim), n >= 2.

    Returns:
        The median, in units of the features.

    Raises:
        DataError: if there are fewer than two rows, or more than half of the pairs are equal.
    """
    rows = rows[:_MEDIAN_ROWS].to(torch.float64)
    rows = rows - rows.mean(0)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    squared = squared_distances(rows, rows)[upper[0], upper[1]]
    median = float(squared.quantile(0.5).sqrt()) if len(squared) else 0.0
    if median == 0:
        raise DataError(
            f"{len(rows)} rows with a median distance of 0",
            "A width for a kernel needs rows that differ",
            "Use more reference images, and look whether they are copies",
        )
    return median


def kernel_mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """Compute the unbiased squared maximum mean discrepancy.

    Args:
        x: shape (n, dim), n >= 2, any float dtype.
        y: shape (m, dim), m >= 2.
        kernel: the kernel.

    Returns:
        The squared discrepancy, in units of the kernel; may be negative.

    Raises:
        ShapeError: if the shapes do not fit.
        DataError: if a side has fewer than two rows.
        NonFiniteError: if a value is NaN or infinite.

    Source:
        Gretton et al. 2012, JMLR 13, Eq. 3. Departs from it in: nothing.
    """
    x, y = row_pair(x, y, least=2)
    return _Sums(x, y, torch.zeros(len(x), dtype=torch.int64), kernel).discrepancy()


def kid(gen: FeatureSet, ref: FeatureSet) -> Estimate:
    """Measure the squared discrepancy with the polynomial kernel of KID, over the kept rows of both sets.

    Args:
        gen: the generated images.
        ref: the reference, with rows, of the same features.

    Returns:
        The squared discrepancy with a jackknife interval over the generated images.

    Raises:
        DataError: if a side has fewer than two rows, as statistics from an npz file have none.
        ShapeError: if the features differ in dimension.

    Source:
        Bińkowski et al. 2018, arXiv:1801.01401, Section 4. Departs from it in: all rows at once instead of means over
        subsets, and an interval.
    """
    return _with_interval(gen, ref, Polynomial())


def mmd_rbf(gen: FeatureSet, ref: FeatureSet) -> Estimate:
    """Measure the squared discrepancy with Gaussian kernels of 1/2, 1 and 2 median distances of the reference.

    The widths depend on the reference alone, so all generators are measured with one kernel.

    Args:
        gen: the generated images.
        ref: the reference, with rows, of the same features.

    Returns:
        The squared discrepancy, without unit, with a jackknife interval over the generated images.

    Raises:
        DataError: if a side has fewer than two rows, or the reference consists of copies.
        ShapeError: if the features differ in dimension.

    Source:
        Gretton et al. 2012, JMLR 13, Section 8. Departs from it in: three widths, the median of the reference alone,
        and an interval.
    """
    row_pair(gen.rows, ref.rows, least=2)
    median = median_distance(ref.rows)
    return _with_interval(gen, ref, RBF((median / 2, median, 2 * median)))


def _with_interval(gen: FeatureSet, ref: FeatureSet, kernel: Kernel) -> Estimate:
    x, y = row_pair(gen.rows, ref.rows, least=2)
    group = group_of(gen.row_index, gen.groups)
    sums = _Sums(x, y, group, kernel)
    counts = torch.bincount(group, minlength=gen.groups)
    usable = gen.groups > 1 and int(counts.min()) > 0 and len(x) - int(counts.max()) > 1
    return jackknife(sums.discrepancy(), [sums.discrepancy(out) for out in range(gen.groups)] if usable else [])


class _Sums:
    """Sums of kernel values between the groups of x and with y: all that leaving a group out needs, in one pass."""

    def __init__(self, x: Tensor, y: Tensor, group: Tensor, kernel: Kernel) -> None:
        order = group.argsort(stable=True)
        self._counts, self._m = torch.bincount(group), len(y)
        x, ends = x[order], [0, *self._counts.cumsum(0).tolist()]
        parts = [x[start:end] for start, end in pairwise(ends)]
        self._cross = torch.stack([_total(part, y, kernel) for part in parts])
        self._yy = _within(y, kernel)
        self._xx = torch.zeros(len(parts), len(parts), dtype=torch.float64)
        for i, part in enumerate(parts):
            self._xx[i, i] = _within(part, kernel)
            for j in range(i):
                self._xx[i, j] = self._xx[j, i] = _total(part, parts[j], kernel)

    def discrepancy(self, without: int | None = None) -> float:
        chosen = torch.arange(len(self._counts)) != (-1 if without is None else without)
        n, m = int(self._counts[chosen].sum()), self._m
        within = self._xx[chosen][:, chosen].sum() / (n * (n - 1)) + self._yy / (m * (m - 1))
        return float(within - 2 * self._cross[chosen].sum() / (n * m))


def _total(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    blocks = [kernel(rows, columns).sum() for rows in torch.split(x, _BLOCK) for columns in torch.split(y, _BLOCK)]
    return torch.stack(blocks).sum() if blocks else x.new_zeros(())


def _within(x: Tensor, kernel: Kernel) -> Tensor:
    """Sum over all pairs of two different rows; the half below the diagonal is that above it."""
    total = x.new_zeros(())
    blocks = torch.split(x, _BLOCK)
    for i, rows in enumerate(blocks):
        own = kernel(rows, rows)
        total = total + own.sum() - own.diagonal().sum()
        total = total + 2 * sum(kernel(rows, columns).sum() for columns in blocks[:i])
    return total
