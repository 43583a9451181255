"""What the scenes let one measure exactly: whether images show their captions, and whether they vary as they should.

Every function takes images and, one for each, their captions; of true images the answers are known: all captions are
shown, rho is 1, what a caption leaves open is uniform, and the distance to the conditional distribution is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.data import Scene, Scenes, law, parse_caption, read_scenes, to_unit
from fewstep.data.scenes import NUISANCES
from fewstep.errors import DataError
from fewstep.features import Features
from fewstep.metrics.diversity import rho
from fewstep.metrics.estimate import GROUPS, Estimate, jackknife
from fewstep.metrics.summary import FeatureSet

__all__ = ["Uniformity", "alignment", "conditional_distance", "nuisances", "per_caption_diversity"]

_ATTRIBUTES: dict[str, Callable[[Scene], object]] = {
    "joint": lambda scene: scene,
    "count": lambda scene: scene.second is None,
    "place": lambda scene: scene.place,
    "shape": lambda scene: [thing and thing.shape for thing in (scene.first, scene.second)],
    "colour": lambda scene: [thing and thing.colour for thing in (scene.first, scene.second)],
    "size": lambda scene: [thing and thing.size for thing in (scene.first, scene.second)],
}
_KOLMOGOROV = 1.3581  # what the root of n times the KS statistic stays below with probability 0.95


def alignment(images: Tensor, captions: Sequence[str]) -> dict[str, Estimate]:
    """Read every image and compare with its caption.

    An attribute is right if it is right for all things of the scene, in their order; nothing is right in an image that
    cannot be read, or that shows another number of things.

    Args:
        images: uint8, shape (n, 3, 32, 32) or (n, 3, 64, 64).
        captions: n of them.

    Returns:
        Shares of all images: "joint" (the whole caption), "count", "place" (for two things: their relation), "shape",
        "colour", "size", and "unreadable", with Wilson's intervals.

    Raises:
        DataError: if there is not one caption per image, or these are no images of scenes.
        UnknownName: if a caption has a word that no scene's caption has.
        ConfigError: if one is no scene's caption.
    """
    wanted, found = _scenes(images, captions), read_scenes(images).scenes
    shares = {}
    for name, attribute in _ATTRIBUTES.items():
        hits = [_agree(attribute, scene, other) for scene, other in zip(wanted, found, strict=True)]
        shares[name] = _share(sum(hits), len(hits))
    return {**shares, "unreadable": _share(sum(scene is None for scene in found), len(found))}


def _agree(attribute: Callable[[Scene], object], wanted: Scene, found: Scene | None) -> bool:
    if found is None or (found.second is None) != (wanted.second is None):
        return False
    return attribute(wanted) == attribute(found)


def per_caption_diversity(
    images: Tensor, captions: Sequence[str], features: Features, seed: int = 0
) -> dict[str, Estimate]:
    """Compare how images of one caption vary with how true images of it do.

    Args:
        images: uint8, shape (n, 3, size, size); several of each caption.
        captions: n of them.
        features: where the variance is taken.
        seed: of the true images that are drawn, as many of each caption as there are images, at least ten.

    Returns:
        "rho", as :func:`fewstep.metrics.diversity.rho` gives it.

    Raises:
        DataError: if there is not one caption per image, or every caption has only one image.
        UnknownName: if a caption has a word that no scene's caption has.
        ConfigError: if one is no scene's caption.
    """
    made, true = FeatureSet(features.dim), FeatureSet(features.dim)
    for label, (scene, rows) in enumerate(_grouped(_scenes(images, captions)).items()):
        # The jackknife leaves out every tenth number: numbers run inside a caption, so that each group has all of them.
        real = Scenes(images.shape[-1]).of_caption(scene, max(10, len(rows)), seed)
        for summary, some in ((made, images[rows]), (true, real)):
            index = torch.arange(summary.n, summary.n + len(some))
            summary.update(features(to_unit(some)), index, torch.full((len(some),), label))
    return rho(made, true)


@dataclass(frozen=True)
class Uniformity:
    """How far a nuisance is from its true law, measured where it is uniform on [0, 1].

    Args:
        n: things or images that it was read off.
        ks: largest difference between the distribution functions (Kolmogorov-Smirnov).
        limit: what `ks` stays below with probability 0.95 under the true law.
        wasserstein: area between the distribution functions (Wasserstein-1); 0.25 if all values are at one end half
            of the time, 0.5 if all are at one end.
    """

    n: int
    ks: float
    limit: float
    wasserstein: float


def nuisances(images: Tensor, captions: Sequence[str]) -> dict[str, Uniformity]:
    """Compare what captions leave open with its law: independent uniform numbers.

    Only images that show their caption count, because the law of others is another one; :func:`alignment` counts them.
    The background is read as a whole grey value, so its `ks` is up to 0.009 even for true images without end.

    Args:
        images: uint8, shape (n, 3, 32, 32) or (n, 3, 64, 64).
        captions: n of them.

    Returns:
        "x", "y", "radius" and "shade" of things, and "background".

    Raises:
        DataError: if there is not one caption per image, or no image shows its caption.
        UnknownName: if a caption has a word that no scene's caption has.
        ConfigError: if one is no scene's caption.
    """
    wanted, read = _scenes(images, captions), read_scenes(images)
    shown = [i for i, (scene, other) in enumerate(zip(wanted, read.scenes, strict=True)) if scene == other]
    if not shown:
        raise DataError(
            f"{len(images)} images of which none shows its caption",
            "Nuisances are those of a caption",
            "Train longer, guide, or look at the images first",
        )
    bounds = law([wanted[i] for i in shown])
    values = (read.things[shown].double() - bounds.low) / (bounds.high - bounds.low)
    low, high = bounds.background
    columns = {name: values[:, :, i].flatten() for i, name in enumerate(NUISANCES)}
    columns["background"] = (read.background[shown].double() - low) / (high - low)
    return {name: _uniformity(column[column.isfinite()]) for name, column in columns.items()}


def _uniformity(values: Tensor) -> Uniformity:
    n = len(values)
    ordered = values.clamp(0, 1).sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    ks = max(float((steps[1:] - ordered).max()), float((ordered - steps[:-1]).max()))
    # Between two neighbouring values the empirical function is flat and the true one a line of slope 1.
    edges = torch.cat([ordered.new_zeros(1), ordered, ordered.new_ones(1)])
    above, below = edges[1:] - steps, edges[:-1] - steps
    area = torch.where(above * below > 0, (above**2 - below**2).abs(), above**2 + below**2).sum() / 2
    return Uniformity(n, ks, _KOLMOGOROV / math.sqrt(n), float(area))


def conditional_distance(images: Tensor, captions: Sequence[str], seed: int = 0) -> Estimate:
    r"""Energy distance of pixels to the true conditional distribution, averaged over captions.

    .. math:: E_c \left[ 2\,E|x - y| - E|x - x'| - E|y - y'| \right]

    with generated images x and as many true ones y of the caption c, freshly drawn, and distances in root mean squares
    of pixels in [-1, 1]. The estimator is unbiased: its mean is 0 for a perfect model, and single values may be below.

    Args:
        images: uint8, shape (n, 3, size, size); at least two of each caption count, other captions are refused.
        captions: n of them.
        seed: of the true images.

    Returns:
        The distance; the interval is a jackknife over groups of captions, and missing for a single one.

    Raises:
        DataError: if there is not one caption per image, or a caption has only one.
        UnknownName: if a caption has a word that no scene's caption has.
        ConfigError: if one is no scene's caption.

    Source:
        Székely, Rizzo 2013, "Energy statistics", Eq. 5. Departs from it in: means over unlike pairs, without bias.
    """
    distances = []
    for scene, rows in _grouped(_scenes(images, captions)).items():
        if len(rows) < 2:
            raise DataError(
                f"One image of the caption {str(scene)!r}",
                "A distance between distributions needs two images of each caption, better twenty",
                "Generate several images per caption",
            )
        distances.append(_energy(images[rows], Scenes(images.shape[-1]).of_caption(scene, len(rows), seed)))
    groups = min(GROUPS, len(distances))
    left_out = [[d for i, d in enumerate(distances) if i % groups != g] for g in range(groups)]
    means = [sum(part) / len(part) for part in left_out if part]
    return jackknife(sum(distances) / len(distances), means if len(means) > 1 else [])


def _energy(made: Tensor, true: Tensor) -> float:
    x, y = (to_unit(images).double().flatten(1) for images in (made, true))
    n, m, root = len(x), len(y), math.sqrt(x.shape[1])
    across, inside, real = (torch.cdist(a, b).sum() / root for a, b in ((x, y), (x, x), (y, y)))
    return float(2 * across / (n * m) - inside / (n * (n - 1)) - real / (m * (m - 1)))


def _scenes(images: Tensor, captions: Sequence[str]) -> list[Scene]:
    """What the captions say, in canonical form, if there is one per image."""
    if len(images) != len(captions) or not captions:
        raise DataError(
            f"{len(images)} images and {len(captions)} captions",
            "One caption for each image, and at least one of both",
            "Pass the captions in the order of the images",
        )
    said = {caption: parse_caption(caption).canonical() for caption in set(captions)}
    return [said[caption] for caption in captions]


def _grouped(scenes: Sequence[Scene]) -> dict[Scene, list[int]]:
    """Scene -> which images are to show it, in the order in which the scenes come first."""
    rows: dict[Scene, list[int]] = {}
    for i, scene in enumerate(scenes):
        rows.setdefault(scene, []).append(i)
    return rows


def _share(hits: int, n: int) -> Estimate:
    """A share with Wilson's interval; it holds near 0 and 1 too, where a bootstrap of equal values has no width."""
    z, p = 1.959964, hits / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (max(0.0, min(1.0, (middle + sign * half) / (1 + z * z / n))) for sign in (-1, 1))
    return Estimate(p, min(low, p), max(high, p), f"Wilson, {n:,} images, 95 %")
