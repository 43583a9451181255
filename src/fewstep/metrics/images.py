"""From images to moments: 8-bit rounding first, then features, then sums.

A picture is what an 8-bit file can hold, so every metric rounds before it looks. That also clips: a sampler that leaves
[-1, 1] is judged by what a viewer would see. Values that can only be pixels in 0..255 or NaN are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.errors import ConfigError, DataError, DtypeError, NonFiniteError
from fewstep.features.base import Features
from fewstep.metrics.frechet import Moments

__all__ = ["image_features", "image_moments", "round_to_8bit"]


def round_to_8bit(images: Tensor) -> Tensor:
    r"""Move images to the nearest of the 256 values an 8-bit file can hold, clipping what lies outside.

    .. math:: u = \mathrm{round}(127.5\,(\mathrm{clip}(x, -1, 1) + 1)), \qquad x' = u / 127.5 - 1

    Args:
        images: floating point, any shape, in [-1, 1].

    Returns:
        The rounded images in [-1, 1], float32, bitwise those that the 8-bit file would give.
    """
    return ((images.to(torch.float32).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@torch.no_grad()
def image_moments(features: Features, images: Tensor, batch_size: int = 250) -> Moments:
    """Compute the moments of the features of images, rounded to 8 bits.

    Args:
        features: any features; the images are given to them on the device they are on.
        images: floating point, shape (n, c, h, w), in [-1, 1].
        batch_size: images per call of the features.

    Returns:
        Moments of n samples.

    Raises:
        ConfigError: if batch_size < 1.
        DtypeError: if the images are not floating point.
        NonFiniteError: if a pixel is NaN or infinite.
        DataError: if the pixels can only be in 0..255.
        ShapeError: if the images do not have the shape that the features read.
    """
    moments = Moments()
    for vectors in image_features(features, images, batch_size):
        moments.update(vectors)
    return moments


@torch.no_grad()
def image_features(features: Features, images: Tensor, batch_size: int = 250) -> Iterator[Tensor]:
    """Compute the features of images, rounded to 8 bits.

    Args:
        features: as for :func:`image_moments`.
        images: as there.
        batch_size: as there.

    Yields:
        Vectors of one batch, shape (b, dim).

    Raises:
        ConfigError: as :func:`image_moments`.
        DtypeError: as there.
        NonFiniteError: as there.
        DataError: as there.
        ShapeError: as there.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}", "A batch has at least one image", "Pass batch_size=250")
    for batch in torch.split(images, batch_size):
        _check_values(batch)
        yield features(round_to_8bit(batch))


def _check_values(images: Tensor) -> None:
    if not images.dtype.is_floating_point:
        raise DtypeError(
            f"Images of dtype {images.dtype}",
            "Metrics read floating-point images in [-1, 1]",
            "Turn 8-bit images into floats: images.float() / 127.5 - 1",
        )
    if images.numel() == 0:
        return
    low, high = (float(end) for end in images.aminmax())
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise NonFiniteError(
            "A pixel is NaN or infinite", "Pixels are finite", "Find the sampler step where it began: check='each'"
        )
    if low >= 0 and high > 2:
        raise DataError(
            f"Pixels from {low:.4g} to {high:.4g}",
            "Metrics read images in [-1, 1], and these can only be in 0..255",
            "Map them with images / 127.5 - 1",
        )
