r"""Means, covariances and the Fréchet distance between two sets of feature vectors.

.. math::
    d^2 = |\mu_a - \mu_b|^2 + \mathrm{tr}\, C_a + \mathrm{tr}\, C_b
          - 2\, \mathrm{tr}\, (C_a^{1/2} C_b C_a^{1/2})^{1/2}

is the squared 2-Wasserstein distance of the two Gaussians with these moments. It is called FID only in the features of
one particular Inception network; here it is a Fréchet distance *in named features*, and it depends on the number of
samples (more samples, smaller distance), so a number without name, split and count says nothing.

Everything is float64 on the CPU. The square roots of the covariances come from their clamped eigenvalues, and the last
trace is a sum of singular values, :math:`\sum_i s_i(C_a^{1/2} C_b^{1/2})`. That is the same number without a second
square root, which would turn a rounding error of 1e-16 into 1e-8 where the covariances are singular.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import DataError, NonFiniteError, ShapeError

__all__ = ["Moments", "check_dims", "frechet_distance", "square_root"]


class Moments:
    r"""Mean and covariance of a stream of feature vectors, in float64.

    Batches are joined by the parallel update, which only ever squares distances from a mean and so keeps its precision
    when the features sit on a large offset:

    .. math:: \delta = \mu_b - \mu_a, \quad \mu = \mu_a + \tfrac{n_b}{n} \delta, \quad
        M = M_a + M_b + \tfrac{n_a n_b}{n} \delta \delta^T, \quad C = M / (n - 1).

    Args:
        features: the first feature vectors, shape (n, dim), or None to begin empty.

    Source:
        Chan, Golub, LeVeque 1979, Eq. 2.1, for vectors. Departs from it in: nothing.
    """

    def __init__(self, features: Tensor | None = None) -> None:
        self._n, self._mean, self._scatter = 0, torch.empty(0), torch.empty(0, 0)
        if features is not None:
            self.update(features)

    @classmethod
    def from_statistics(cls, mean: Tensor, cov: Tensor, n: int) -> Moments:
        """Take moments that were computed elsewhere.

        Args:
            mean: shape (dim,).
            cov: unbiased covariance, shape (dim, dim).
            n: number of samples behind them.

        Returns:
            Moments with these values.

        Raises:
            ShapeError: if mean and cov are not of shapes (dim,) and (dim, dim).
            DataError: if n < 2.
            NonFiniteError: if a value is NaN or infinite.
        """
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
            raise ShapeError(
                f"A mean of shape {tuple(mean.shape)} and a covariance of shape {tuple(cov.shape)}",
                "They have shapes (dim,) and (dim, dim)",
                "Pass the statistics of one set of features",
            )
        if n < 2:
            raise _too_few(n)
        _check_finite(mean, "mean")
        _check_finite(cov, "covariance")
        moments = cls()
        moments._n, moments._mean = n, _float64(mean)
        moments._scatter = (n - 1) * _float64((cov + cov.mT) / 2)
        return moments

    @classmethod
    def from_scatter(cls, mean: Tensor, scatter: Tensor, n: int) -> Moments:
        """Make the moments again whose `mean`, `scatter` and `n` these are, bitwise; for files that fewstep wrote.

        Args:
            mean: shape (dim,), float64.
            scatter: sum of the outer products of the distances from the mean, shape (dim, dim), float64.
            n: number of samples, 0 for moments of none.

        Returns:
            Moments with these values.
        """
        moments = cls()
        if n:
            moments._n, moments._mean, moments._scatter = n, mean.clone(), scatter.clone()
        return moments

    @property
    def n(self) -> int:
        """Number of samples so far."""
        return self._n

    @property
    def dim(self) -> int:
        """Length of a feature vector; 0 before the first one."""
        return len(self._mean)

    @property
    def mean(self) -> Tensor:
        """Mean, shape (dim,), float64, of at least one sample."""
        if self._n < 1:
            raise _too_few(self._n)
        return self._mean.clone()

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance, shape (dim, dim), float64, of at least two samples."""
        if self._n < 2:
            raise _too_few(self._n)
        return self._scatter / (self._n - 1)

    @property
    def scatter(self) -> Tensor:
        """Sum of the outer products of the distances from the mean, shape (dim, dim), float64; cov is it / (n - 1)."""
        return self._scatter.clone()

    def update(self, features: Tensor) -> None:
        """Add a batch of samples.

        Args:
            features: shape (b, dim), any float dtype and device; b = 0 changes nothing.

        Raises:
            ShapeError: if the features are not (b, dim), or dim is not that of the samples before.
            NonFiniteError: if a feature is NaN or infinite; nothing is added then.
        """
        if features.ndim != 2 or (self._n and features.shape[1] != self.dim):
            raise ShapeError(
                f"Features of shape {tuple(features.shape)}",
                f"Features have shape (b, {self.dim if self._n else 'dim'})",
                "Flatten them to one vector per image, and keep to one kind of features",
            )
        _check_finite(features, "features")
        if len(features) == 0:
            return
        rows = _float64(features)
        mean = rows.mean(0)
        step = self._move(len(rows), mean)
        # The step between the means is one more row, so a large scatter is read and written once a batch, in place.
        centred = torch.cat([rows - mean, step[None]])
        self._scatter.addmm_(centred.mT, centred)

    def merge(self, *others: Moments) -> Moments:
        """Join sets of samples; none of the objects changes.

        Args:
            *others: moments of further samples of the same features.

        Returns:
            Moments of all of them together.

        Raises:
            ShapeError: if two of them have samples of unlike dimensions.
        """
        merged = Moments()
        for part in (self, *others):
            if part._n:
                check_dims(merged.dim or part.dim, part.dim)
                step = merged._move(part._n, part._mean)
                merged._scatter.add_(part._scatter).addr_(step, step)
        return merged

    def _move(self, n: int, mean: Tensor) -> Tensor:
        """Count n more samples and move the mean; returns the vector whose outer product the scatter grows by."""
        if self._n == 0:
            self._mean, self._scatter = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean))
        total, delta = self._n + n, mean - self._mean
        step: Tensor = delta * (self._n * n / total) ** 0.5
        self._mean, self._n = self._mean + delta * (n / total), total
        return step


def frechet_distance(a: Moments, b: Moments) -> float:
    r"""Measure the Fréchet distance between the Gaussians of two sets of features.

    .. math:: |\mu_a - \mu_b|^2 + \mathrm{tr}\, C_a + \mathrm{tr}\, C_b - 2 \sum_i s_i(C_a^{1/2} C_b^{1/2})

    with singular values s. Right for singular covariances too. Biased upwards, in proportion to 1/n.

    Args:
        a: moments of at least two samples.
        b: moments of at least two samples of the same features.

    Returns:
        The squared distance, in squared units of the features, never negative.

    Raises:
        DataError: if one of them has fewer than two samples.
        ShapeError: if their dimensions differ.

    Source:
        Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500, Eq. 6. Departs from it in: how the trace is taken.
    """
    for moments in (a, b):
        if moments.n < 2:
            raise _too_few(moments.n)
    check_dims(a.dim, b.dim)
    cov_a, cov_b = a.cov, b.cov
    cross = torch.linalg.svdvals(square_root(cov_a) @ square_root(cov_b)).sum()
    shift = (a.mean - b.mean).square().sum()
    # Rounding can leave -1e-15 where the mathematics says zero.
    return max(0.0, float(shift + cov_a.trace() + cov_b.trace() - 2 * cross))


def square_root(cov: Tensor) -> Tensor:
    """Take the square root of a covariance; eigenvalues that are only rounding count as zero.

    Args:
        cov: positive semidefinite, shape (dim, dim), float64.

    Returns:
        The symmetric root, shape (dim, dim).
    """
    values, vectors = torch.linalg.eigh(cov)
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = (vectors * torch.where(values > floor, values, 0).sqrt()) @ vectors.mT
    return root


def _float64(x: Tensor) -> Tensor:
    return x.detach().to("cpu").to(torch.float64)


def _check_finite(x: Tensor, what: str) -> None:
    finite = torch.isfinite(x)
    if not finite.all():
        raise NonFiniteError(
            f"{int((~finite).sum())} of {x.numel()} values of the {what} are NaN or infinite",
            "Moments need finite values",
            "Look for the images they came from; a sampler that diverged is the usual reason",
        )


def check_dims(a: int, b: int) -> None:
    """Refuse to compare features of unlike dimensions; ShapeError."""
    if a != b:
        raise ShapeError(
            f"Features of {a} and of {b} dimensions",
            "A distance compares one kind of features",
            "Compute both sides with the same features",
        )


def _too_few(n: int) -> DataError:
    return DataError(f"Moments of {n} samples", "A mean needs one sample and a covariance two", "Add more samples")
