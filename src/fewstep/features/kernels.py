"""Kernels of feature vectors: what the discrepancy that is measured and the one that is minimised have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Polynomial", "gaussians", "squared_distances"]


@dataclass(frozen=True)
class Polynomial:
    r"""The kernel of KID.

    .. math:: k(x, y) = (\gamma\, x \cdot y + c)^p

    Args:
        degree: p.
        gamma: factor of the inner product; None is 1 / dim.
        coef: c.

    Source:
        Bińkowski et al. 2018, arXiv:1801.01401, Eq. 3. Departs from it in: nothing.
    """

    degree: int = 3
    gamma: float | None = None
    coef: float = 1.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluate all pairs: x of shape (n, dim), y of shape (m, dim) -> (n, m)."""
        gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
        return (gamma * (x @ y.mT) + self.coef) ** self.degree

    def fitted(self, real: Tensor) -> Polynomial:
        """Return the kernel itself: it has no scale to take from data."""
        return self


def gaussians(squared: Tensor, widths: Sequence[float]) -> Tensor:
    """Average Gaussian kernels of several widths at squared distances, in units of the widths; same shape."""
    total = squared.new_zeros(())
    for width in widths:  # summed as they come: a stack would hold them all twice
        total = total + (squared / (-2 * width**2)).exp()
    return total / len(widths)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances of all pairs: x of shape (n, dim), y of shape (m, dim) -> (n, m)."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.mT)).clamp(min=0)
