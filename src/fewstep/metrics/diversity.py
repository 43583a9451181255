r"""Per-condition diversity: do samples of one condition vary as much as real images of it do?

.. math:: \rho = \frac{E_c\, \mathrm{tr}\, \mathrm{Cov}_z\, F(z, c)}{E_c\, \mathrm{tr}\, \mathrm{Cov}(x \mid c)}

in the vectors of some features. A model that answers every class with its mean has rho = 0 however good its pictures
are; 1 is the variance of the data. The expectations weigh the conditions as the real images do. Distances of whole sets
hardly see this, because the variance between classes can stand in for the variance inside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fewstep.errors import DataError, ShapeError
from fewstep.metrics.estimate import GROUPS, Estimate, bounded, jackknife
from fewstep.metrics.grouping import group_of
from fewstep.metrics.spread import Spread
from fewstep.metrics.summary import FeatureSet

__all__ = ["rho"]

_LEAST_REAL = 10  # images of a condition, below which its own variance is no yardstick
_MANY = 50  # conditions, from which on they are the sample whose choice matters

_Traces = Mapping[int, tuple[int, float]]


def rho(gen: FeatureSet, ref: FeatureSet) -> dict[str, Estimate]:
    """Compare the variance of generated images inside each condition with that of real ones.

    Conditions with at least ten real and two generated images count, and `how` says how many of all generated images
    those are. Where no condition has ten real images, as with one image per caption, there is no ratio: the numerator
    stands alone under another name, each condition with the same weight.

    Intervals are a jackknife. With fewer than 50 conditions, these are taken as given (the ten classes are all there
    are) and groups of images are left out on both sides, of the kept vectors only, so that intervals of larger sets are
    too long rather than too short. From 50 conditions on, groups of conditions are left out.

    Args:
        gen: the generated images, with labels.
        ref: the real images, with labels.

    Returns:
        "rho", without unit; or "diversity", the mean trace of the covariance, in squared units of the features.

    Raises:
        DataError: if a side has no labels, no condition has two generated images, or the real images of every condition
            are all alike, so that there is nothing to divide by.
        ShapeError: if the features are of unlike dimensions.

    Source:
        None; the ratio of the law of total variance within conditions.
    """
    _check(gen, ref)
    made, real = gen.spread, ref.spread
    chosen = [c for c, (n, _) in real.items() if n >= _LEAST_REAL and made.get(c, (0, 0.0))[0] >= 2]
    name = "rho" if chosen else "diversity"
    if not chosen:
        real, chosen = {}, [c for c, (n, _) in made.items() if n >= 2]
    if not chosen:
        raise DataError(
            f"{len(made)} conditions with one generated image each",
            "A variance needs two images of one condition",
            "Generate several images per condition",
        )
    if len(chosen) >= _MANY:
        group = group_of(torch.arange(len(chosen)), GROUPS).tolist()
        parts = [[c for c, own in zip(chosen, group, strict=True) if own != g] for g in range(GROUPS)]
        left_out, what = [_ratio(made, part, real) for part in parts], "conditions"
    else:
        left_out, what = _without_images(gen, ref if real else None, chosen), "images"
    whole = bounded(jackknife(_ratio(made, chosen, real), left_out), 0.0)
    counted = f"{sum(made[c][0] for c in chosen):,} of {gen.n:,} generated images in {len(chosen):,} conditions"
    how = f"{whole.how.replace('groups', f'groups of {what}')}; {counted}"
    return {name: replace(whole, how=how)}


def _ratio(made: _Traces, chosen: list[int], real: _Traces) -> float:
    below = _mean(real, chosen, real)
    if below == 0:
        raise DataError(
            f"Real images without any variance inside {len(chosen)} conditions",
            "The variance of the generated images is divided by that of the real ones",
            "Look whether the real images of a condition are copies, or take features that tell them apart",
        )
    return _mean(made, chosen, real) / below


def _mean(traces: _Traces, chosen: list[int], real: _Traces) -> float:
    """Average the traces of conditions, weighted as the real images are; 1 where there is nothing to average."""
    if not traces:
        return 1.0
    weights = [real[c][0] if real else 1 for c in chosen]
    return sum(w * traces[c][1] for w, c in zip(weights, chosen, strict=True)) / sum(weights)


def _without_images(gen: FeatureSet, ref: FeatureSet | None, chosen: list[int]) -> list[float]:
    """Compute the number without one group of kept images at a time; empty if that leaves a condition too few."""
    groups = gen.groups
    left_out = []
    for g in range(groups if groups > 1 else 0):
        made, real = _kept(gen, g, groups), _kept(ref, g, groups) if ref else {}
        if any(traces.get(c, (0, 0.0))[0] < 2 for traces in (made, *([real] if ref else [])) for c in chosen):
            return []
        left_out.append(_ratio(made, chosen, real))
    return left_out


def _kept(side: FeatureSet, without: int, groups: int) -> _Traces:
    chosen, labels = group_of(side.row_index, groups) != without, side.row_labels
    spread = Spread(side.dim)
    if labels is not None:
        spread.add(labels[chosen], side.rows[chosen].to(torch.float64))
    return spread.traces()


def _check(gen: FeatureSet, ref: FeatureSet) -> None:
    if gen.dim != ref.dim:
        raise ShapeError(
            f"Features of {gen.dim} and {ref.dim} dimensions",
            "A ratio compares one kind of features",
            "Compute both sides with the same features",
        )
    for name, side in (("generated", gen), ("real", ref)):
        if not side.spread:
            raise DataError(
                f"A set of {name} images without labels",
                "Diversity is measured inside each condition",
                "Pass the labels of both sides, or leave rho out",
            )
