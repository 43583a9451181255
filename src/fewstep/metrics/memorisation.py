r"""Memorisation: are generated images nearer to the training images than unseen real images are?

Every generated image and every held-out real one has a nearest training image. A model that draws from the data
distribution puts as many of its images as held-out ones closer than any given distance; one that repeats its training
set puts more of them there. Held-out images are the yardstick, because no distance means anything by itself.

Being far is no merit: noise and blur carry an image away from the training set, so this number stands beside one of
quality. Distances are those of the chosen features; raw pixels find copies, feature vectors find near copies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.errors import ConfigError, DataError, NonFiniteError
from fewstep.metrics.estimate import Estimate, bounded, jackknife
from fewstep.metrics.grouping import group_of
from fewstep.metrics.neighbours import check_same_features, nearest
from fewstep.metrics.summary import FeatureSet

__all__ = ["mann_whitney_z", "memorisation", "nearest"]


def memorisation(gen: FeatureSet, train: FeatureSet, held_out: FeatureSet, q: float = 0.01) -> dict[str, Estimate]:
    """Compare the distances of generated and of held-out images to their nearest training images.

    Only kept vectors are looked at: give the training set a `keep` that covers it, or a copy of an image beyond stays
    unseen.

    Args:
        gen: the generated images.
        train: the images the model was trained on.
        held_out: real images of the same kind that it was not trained on.
        q: quantile of the held-out distances that counts as suspiciously near.

    Returns:
        "memorised": share of the generated images nearer than the q-quantile of held-out distances, in expectation q
        for a model that does not memorise, with a jackknife interval over groups of images; "copies": share at
        distance 0, likewise; "memorised_z": z of the generated against the held-out distances, about a standard normal
        for a model that does not memorise, below -3 for one that does, interval z ± 1.96.

    Raises:
        ConfigError: if q is not between 0 and 1.
        DataError: if there are fewer than 1/q held-out images, or a set kept no vectors.
        ShapeError: if the features are of unlike dimensions.

    Source:
        The z is that of Meehan, Chaudhuri, Dasgupta 2020, arXiv:2004.05675, Section 3. Departs from it in: one cell
        for the whole space.
    """
    check_same_features(gen, train, held_out)
    if not 0 < q < 1:
        raise ConfigError(f"q = {q}", "A quantile lies between 0 and 1", "Pass q=0.01")
    if len(held_out.rows) < 1 / q:
        raise DataError(
            f"{len(held_out.rows)} held-out images for the quantile {q}",
            f"At least {math.ceil(1 / q)} are needed for one of them to lie below it",
            "Pass more held-out images, or a larger q",
        )
    groups = gen.groups
    (far, group), (usual, usual_group) = (
        (nearest(side.rows, train.rows)[0], group_of(side.row_index, groups)) for side in (gen, held_out)
    )
    parts = range(groups if groups > 1 and len(far) >= 2 * groups else 0)
    near = [_share_below(far[group != g], usual[usual_group != g], q) for g in parts]
    copies = [float((far[group != g] == 0).double().mean()) for g in parts]
    z = mann_whitney_z(far, usual)
    return {
        "memorised": bounded(jackknife(_share_below(far, usual, q), near), 0.0, 1.0),
        "copies": bounded(jackknife(float((far == 0).double().mean()), copies), 0.0, 1.0),
        "memorised_z": Estimate(z, z - 1.96, z + 1.96, "Mann-Whitney, 95 %"),
    }


def _share_below(far: Tensor, usual: Tensor, q: float) -> float:
    return float((far < usual.quantile(q)).double().mean())


def mann_whitney_z(x: Tensor, y: Tensor) -> float:
    r"""Test whether the numbers x tend to be smaller than the numbers y; ties count half.

    .. math:: z = \frac{U - nm/2}{\sqrt{\tfrac{nm}{12} \left(n + m + 1 - \sum_t \tfrac{t^3 - t}{(n+m)(n+m-1)}\right)}}

    with U the number of pairs with x > y, and t the sizes of the groups of equal numbers.

    Args:
        x: shape (n,), n of at least 1.
        y: shape (m,), m of at least 1.

    Returns:
        z: below 0 when x is smaller, 0 if all numbers are equal; about a standard normal if both come from one law.

    Raises:
        DataError: if one side is empty.
        NonFiniteError: if a number is NaN.

    Source:
        Mann, Whitney 1947, with the usual correction for ties. Departs from it in: nothing.
    """
    n, m = len(x), len(y)
    if n == 0 or m == 0:
        raise DataError(f"{n} and {m} numbers", "A comparison needs both", "Pass at least one on each side")
    if torch.isnan(x).any() or torch.isnan(y).any():
        raise NonFiniteError("NaN among the numbers", "Numbers have an order", "Look at what they were computed from")
    _, place, counts = torch.unique(torch.cat([x, y]), return_inverse=True, return_counts=True)
    ties = counts.to(torch.float64)
    ranks = ties.cumsum(0) - (ties - 1) / 2
    u = float(ranks[place[:n]].sum()) - n * (n + 1) / 2
    total = n + m
    correction = float((ties**3 - ties).sum()) / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - correction)
    return (u - n * m / 2) / math.sqrt(variance) if variance > 1e-9 else 0.0
