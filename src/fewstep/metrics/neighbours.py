r"""Distances between all vectors of two sets, a block at a time, and the nearest neighbour of each.

.. math:: |x - y|^2 = |x|^2 + |y|^2 - 2\, x \cdot y

in float64 about the mean of y. The product makes it fast; in float32 its rounding, 1e-7 of the squared norms, would
exceed the distances of near neighbours in many dimensions, and change who is the fifth of them. Memory is one block of
rows times the size of the other set.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.errors import DataError, ShapeError
from fewstep.metrics.indexed import check_pair
from fewstep.metrics.summary import FeatureSet

__all__ = ["check_same_features", "nearest", "squared_distances"]

_BLOCK = 1000


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Measure the squared distances of x to y, block by block.

    Args:
        x: shape (n, dim), any float dtype.
        y: shape (m, dim).

    Yields:
        Which rows of x, and their squared distances to all of y, shape (b, m), float64, never negative. They carry a
        rounding error of some 1e-15 of the squared norms.

    Raises:
        ShapeError: if the two do not fit together.
        NonFiniteError: if a value is NaN or infinite.
    """
    check_pair(x, y)
    centre = y.mean(0, dtype=torch.float64)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        here = x[rows].to(torch.float64) - centre
        # The other set, too, becomes float64 one block at a time: as a whole it could be many times the memory.
        yield rows, torch.cat([_block(here, part.to(torch.float64) - centre) for part in torch.split(y, _BLOCK)], 1)


def _block(x: Tensor, y: Tensor) -> Tensor:
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.mT, alpha=-2).clamp_(min=0)


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest vector of another set to each vector.

    Args:
        x: shape (n, dim), any float dtype; images are flattened first.
        y: shape (m, dim), m of at least 1.

    Returns:
        Distances, shape (n,), float64, exactly 0 where x is in y; and positions in y, shape (n,), int64.

    Raises:
        ShapeError: if the two do not fit together.
        DataError: if y is empty.
        NonFiniteError: if a value is NaN or infinite.
    """
    if len(y) == 0:
        raise DataError("No vectors to be near to", "There must be at least one", "Pass the training images")
    found = [block.argmin(1) for _, block in squared_distances(x, y)]
    index = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    parts = zip(torch.split(x, _BLOCK), torch.split(index, _BLOCK), strict=True)
    # The winner's distance once more, without the product: a copy is then at 0, not at the square root of a rounding.
    far = [(rows.to(torch.float64) - y[chosen].to(torch.float64)).norm(dim=1) for rows, chosen in parts]
    return torch.cat(far), index


def check_same_features(*sets: FeatureSet) -> None:
    """Refuse sets of images that keep no rows, or rows of unlike dimensions."""
    if any(len(one.rows) == 0 for one in sets):
        raise DataError(
            "A set of images without rows, as statistics from a file are",
            "Metrics about single images need their feature vectors",
            "Compute the set from images, with keep above 0",
        )
    if len({one.dim for one in sets}) > 1:
        raise ShapeError(
            f"Features of {' and '.join(str(one.dim) for one in sets)} dimensions",
            "A metric compares one kind of features",
            "Compute all sides with the same features",
        )
