r"""Scores of single images: class probabilities as the Inception Score reads them, and image-text agreement.

Both borrow a form and not a name. `inception_score` of another classifier's probabilities is no Inception Score, and
`clip_score` is CLIP's only in CLIP's embeddings: results carry the name of the features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewstep.errors import DataError, NonFiniteError, ShapeError
from fewstep.metrics.estimate import Estimate, bootstrap_mean, bounded, jackknife
from fewstep.metrics.summary import ProbabilitySet, ScoreSet

__all__ = ["clip_score", "clip_score_values", "inception_score"]


def inception_score(probabilities: ProbabilitySet) -> Estimate:
    r"""Measure how sure a classifier is of each image and how evenly the images spread over its classes.

    .. math:: \exp E_x\, \mathrm{KL}(p(y | x) \,\|\, p(y)) = \exp\bigl(H(E_x\, p) - E_x H(p)\bigr)

    1 when every image looks the same to the classifier, k when it is sure of each and all k classes come equally often.
    It does not look at real images, and sees nothing of the variety inside a class.

    Args:
        probabilities: class probabilities of the images, summed.

    Returns:
        A number from 1 to the number of classes, with a jackknife interval over groups of images.

    Raises:
        DataError: if there are no images.

    Source:
        Salimans et al. 2016, arXiv:1606.03498, Section 4. Departs from it in: any classifier, and one estimate of all
        images in place of the mean over ten splits, which is biased more.
    """
    if probabilities.n == 0:
        raise DataError("No images", "The score needs at least one", "Add class probabilities first")
    parts = [probabilities.sums(without=g) for g in range(probabilities.groups)]
    # An interval needs every group, and something that is left without it.
    usable = all(0 < n < probabilities.n for n, _, _ in parts)
    whole = jackknife(_score(*probabilities.sums()), [_score(*sums) for sums in parts] if usable else [])
    return bounded(whole, 1.0, float(probabilities.classes))


def _score(n: int, probability: Tensor, entropy: float) -> float:
    mean = probability / n
    # Rounding can leave -1e-16 where all images are alike.
    return math.exp(max(0.0, float(-torch.special.xlogy(mean, mean).sum()) - entropy / n))


def clip_score_values(images: Tensor, texts: Tensor) -> Tensor:
    r"""Score how well each image fits its text.

    .. math:: s = 100 \max\left(\frac{u \cdot v}{|u| |v|}, 0\right)

    Args:
        images: embeddings of the images, shape (n, dim), any float dtype.
        texts: embeddings of their texts in the same space, shape (n, dim).

    Returns:
        Scores from 0 to 100, shape (n,), float64.

    Raises:
        ShapeError: if the two are not of one shape (n, dim).
        NonFiniteError: if an embedding is NaN, infinite or zero, so that it has no direction.

    Source:
        Hessel et al. 2021, arXiv:2104.08718, Eq. 1. Departs from it in: the factor 100, not 2.5, as in the tables of
        text-to-image papers.
    """
    if images.ndim != 2 or images.shape != texts.shape:
        raise ShapeError(
            f"Embeddings of shapes {tuple(images.shape)} and {tuple(texts.shape)}",
            "Images and texts have embeddings of one shape (n, dim)",
            "Pass one text per image, embedded by the same model",
        )
    u, v = (side.detach().to("cpu").to(torch.float64) for side in (images, texts))
    lengths = u.norm(dim=1) * v.norm(dim=1)
    bad = ~(torch.isfinite(lengths) & (lengths > 0))
    if bad.any():
        raise NonFiniteError(
            f"The embedding of image {int(bad.nonzero()[0])} or of its text is NaN, infinite or zero",
            "Embeddings have a direction",
            "Look for that image and text",
        )
    return 100 * (normalize(u, dim=1) * normalize(v, dim=1)).sum(1).clamp(min=0)


def clip_score(scores: ScoreSet) -> Estimate:
    """Average image-text scores, with a bootstrap interval over images.

    Args:
        scores: one score per image, from :func:`clip_score_values`.

    Returns:
        The mean with its interval.

    Raises:
        DataError: if there are no scores.
    """
    return bootstrap_mean(scores.values)
