r"""Precision, recall, density and coverage: what part of the samples is real-like, and what part of the data is met.

Around every vector lies a ball that reaches to its k-th neighbour in its own set, :math:`B(x_i) = \{y : |y - x_i| \le
\mathrm{NND}_k(x_i)\}`. With N real vectors x and M generated ones y,

.. math::
    \text{precision} &= \tfrac1M \textstyle\sum_j 1[\exists i: y_j \in B(x_i)] &
    \text{recall} &= \tfrac1N \textstyle\sum_i 1[\exists j: x_i \in B(y_j)] \\
    \text{density} &= \tfrac1{kM} \textstyle\sum_{j,i} 1[y_j \in B(x_i)] &
    \text{coverage} &= \tfrac1N \textstyle\sum_i 1[\exists j: y_j \in B(x_i)]

Precision is about the *generated* images and real balls: it falls when a model invents. Recall is about the *real*
images and generated balls: it falls when a model forgets. Density and coverage stand on real balls alone, which
outliers among the samples cannot inflate. All four depend on the number of images and on k; real against real gives a
density of 1 and a coverage of 1 - 2^-k on average for equal numbers, but precision and recall below 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.errors import ConfigError, DataError
from fewstep.metrics.estimate import Estimate, bounded, jackknife
from fewstep.metrics.grouping import group_of
from fewstep.metrics.neighbours import check_same_features, squared_distances
from fewstep.metrics.summary import FeatureSet

__all__ = ["prdc", "prdc_values"]

_NAMES = ("precision", "recall", "density", "coverage")


def prdc_values(*, real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Compute precision, recall, density and coverage of feature vectors.

    The two sets go by name, because nothing else would tell that precision and recall were swapped.

    Args:
        real: vectors of real images, shape (n, dim), any float dtype.
        fake: vectors of generated images, shape (m, dim); m may differ from n, but recall then looks at unlike balls.
        k: which neighbour a ball reaches to.

    Returns:
        "precision", "recall" and "coverage" in [0, 1], "density" of at least 0.

    Raises:
        ConfigError: if k < 1.
        DataError: if one side has no more than k vectors.
        ShapeError: if the two do not fit together.
        NonFiniteError: if a value is NaN or infinite.

    Source:
        Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2; Naeem et al. 2020, arXiv:2002.09797, Section 3.
        Departs from it in: what lies on the sphere of a ball is in it for all four, as the first paper writes and the
        code of the second does not, which matters for duplicates only.
    """
    _check_enough(k, real=len(real), generated=len(fake))
    return _left_out(real, fake, k, torch.zeros(len(real)), torch.zeros(len(fake)), [-1])[0]


def prdc(gen: FeatureSet, ref: FeatureSet, k: int = 5) -> dict[str, Estimate]:
    """Compute precision, recall, density and coverage of generated images, with intervals.

    Both sides give equally many images, the first min(n, m) of those whose vectors were kept. The intervals come from
    leaving out one group of images on both sides at a time, with new balls each time: balls are shared by many
    images, so the indicators of single images are not independent, and resampling them alone gives too short intervals.

    Args:
        gen: the generated images.
        ref: the real images.
        k: which neighbour a ball reaches to.

    Returns:
        "precision", "recall", "density" and "coverage".

    Raises:
        ConfigError: if k < 1.
        DataError: if one side kept no more than k vectors.
        ShapeError: if the features are of unlike dimensions.
    """
    check_same_features(gen, ref)
    _check_enough(k, real=len(ref.rows), generated=len(gen.rows))
    n, groups = min(len(gen.rows), len(ref.rows)), gen.groups
    sides = [(group_of(one.row_index[:n], groups), one.rows[:n]) for one in (ref, gen)]
    counts = torch.stack([torch.bincount(group, minlength=groups) for group, _ in sides])
    # With an empty group, or too few images without one, there is a number, but no interval.
    usable = groups > 1 and int(counts.sum(0).min()) > 0 and n - int(counts.max()) > k
    outs = list(range(groups)) if usable else []
    (real_group, real), (fake_group, fake) = sides
    whole, *parts = _left_out(real, fake, k, real_group, fake_group, [-1, *outs])
    most = {"density": float("inf")}
    return {
        name: bounded(jackknife(whole[name], [part[name] for part in parts]), 0.0, most.get(name, 1.0))
        for name in _NAMES
    }


def _check_enough(k: int, **counts: int) -> None:
    if k < 1:
        raise ConfigError(f"k = {k}", "A ball reaches to the first neighbour or further", "Pass k=5")
    for name, n in counts.items():
        if n <= k:
            raise DataError(f"{n} {name} images for k = {k}", f"At least {k + 1}", "Pass more images, or less k")


def _left_out(
    real: Tensor, fake: Tensor, k: int, real_group: Tensor, fake_group: Tensor, outs: list[int]
) -> list[dict[str, float]]:
    """Compute the four numbers without one group on both sides, for each of `outs`; -1 leaves nothing out."""
    balls, holds = _meet(real, _radii(real, k, real_group, outs), fake, real_group, fake_group, outs)
    back, _ = _meet(fake, _radii(fake, k, fake_group, outs), real, fake_group, real_group, outs)
    values = []
    for number, out in enumerate(outs):
        reals, fakes = real_group != out, fake_group != out
        numbers = (
            (balls[number, fakes] > 0).double().mean(),
            (back[number, reals] > 0).double().mean(),
            balls[number, fakes].double().mean() / k,
            holds[number, reals].double().mean(),
        )
        values.append({name: float(value) for name, value in zip(_NAMES, numbers, strict=True)})
    return values


def _radii(x: Tensor, k: int, group: Tensor, outs: list[int]) -> Tensor:
    """Squared distance of each vector to its k-th neighbour among those not left out, shape (outs, n), float64.

    A little is added, far above the rounding of float64 and far below what float32 features can mean, so that a vector
    at the very distance of the k-th neighbour is inside in whatever order its distance was summed up.
    """
    numbers = torch.unique(group).tolist()
    centre, radii = x.mean(0, dtype=torch.float64), torch.empty(len(outs), len(x), dtype=torch.float64)
    for rows, squared in squared_distances(x, x):
        squared[torch.arange(len(squared)), torch.arange(len(x))[rows]] = float("inf")
        # The k nearest of each group are enough to find the k-th of any choice of groups.
        near = {g: _smallest(squared[:, group == g], k) for g in numbers}
        for number, out in enumerate(outs):
            candidates = torch.cat([values for g, values in near.items() if g != out], 1)
            radii[number, rows] = candidates.kthvalue(k).values
        radii[:, rows] += 1e-11 * (radii[:, rows] + (x[rows].to(torch.float64) - centre).square().sum(1))
    return radii


def _smallest(values: Tensor, k: int) -> Tensor:
    return values.topk(min(k, values.shape[1]), largest=False).values


def _meet(
    x: Tensor, radii: Tensor, y: Tensor, group_x: Tensor, group_y: Tensor, outs: list[int]
) -> tuple[Tensor, Tensor]:
    """Count the balls of x around each y, shape (outs, m), and say which balls hold a y, shape (outs, n)."""
    # A ball that is left out holds nothing, not even its centre.
    radii = radii.masked_fill(group_x == torch.tensor(outs)[:, None], -1.0)
    balls = torch.zeros(len(outs), len(y), dtype=torch.int64)
    holds = torch.zeros(len(outs), len(x), dtype=torch.bool)
    for rows, squared in squared_distances(x, y):
        closest = {g: squared[:, group_y == g].amin(1) for g in torch.unique(group_y).tolist()}
        for number, out in enumerate(outs):
            balls[number] += (squared <= radii[number, rows, None]).sum(0)
            others = torch.stack([distance for g, distance in closest.items() if g != out])
            holds[number, rows] = others.amin(0) <= radii[number, rows]
    return balls, holds
