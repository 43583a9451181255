"""Variance inside each class of a stream of vectors: one count, mean and sum of squared distances per label."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Spread"]


class Spread:
    r"""Count, mean and scatter of the vectors of each label, in float64.

    Parts are joined as :class:`fewstep.metrics.Moments` joins them, with the trace of the scatter only:

    .. math:: n = \sum_i n_i, \quad \mu = \tfrac{1}{n} \sum_i n_i \mu_i, \quad
        S = \sum_i S_i + \sum_i n_i |\mu_i - \mu|^2 .

    Memory grows with the number of distinct labels.

    Args:
        dim: length of a vector.
    """

    def __init__(self, dim: int) -> None:
        self._labels = torch.empty(0, dtype=torch.int64)
        double = torch.empty(0, dtype=torch.float64)
        self._count, self._mean, self._scatter = double, double.reshape(0, dim), double

    def add(self, labels: Tensor, values: Tensor) -> None:
        """Add vectors.

        Args:
            labels: shape (b,), int64.
            values: shape (b, dim), float64.
        """
        self._join(labels, torch.ones(len(labels), dtype=torch.float64), values, values.new_zeros(len(labels)))

    def merge(self, other: Spread) -> Spread:
        """Join two parts; neither of them changes."""
        joined = Spread(self._mean.shape[1])
        for part in (self, other):
            joined._join(part._labels, part._count, part._mean, part._scatter)
        return joined

    def traces(self) -> Mapping[int, tuple[int, float]]:
        """Label -> (count, trace of the unbiased covariance), in ascending order; NaN for a single vector."""
        columns = (self._labels, self._count, self._scatter / (self._count - 1))  # 0 / 0 is NaN
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return {label: (int(count), trace) for label, count, trace in rows}

    def state(self) -> dict[str, Tensor]:
        """Give everything as tensors; :meth:`from_state` is the way back."""
        return {"labels": self._labels, "count": self._count, "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Spread:
        """Make the object again whose :meth:`state` this is."""
        spread = cls(state["mean"].shape[1])
        spread._labels, spread._count = state["labels"], state["count"]
        spread._mean, spread._scatter = state["mean"], state["scatter"]
        return spread

    def _join(self, labels: Tensor, count: Tensor, mean: Tensor, scatter: Tensor) -> None:
        labels, count = torch.cat([self._labels, labels]), torch.cat([self._count, count])
        mean, scatter = torch.cat([self._mean, mean]), torch.cat([self._scatter, scatter])
        self._labels, place = torch.unique(labels, return_inverse=True)
        self._count = _sum(count, place, len(self._labels))
        self._mean = _sum(count[:, None] * mean, place, len(self._labels)) / self._count[:, None]
        between = count * (mean - self._mean[place]).square().sum(1)
        self._scatter = _sum(scatter + between, place, len(self._labels))


def _sum(values: Tensor, place: Tensor, places: int) -> Tensor:
    return values.new_zeros(places, *values.shape[1:]).index_add_(0, place, values)
