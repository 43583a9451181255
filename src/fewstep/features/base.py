"""What a feature extractor is, and the checks that all of them make.

Features map images to vectors, differentiably and image by image: the vector of an image does not depend on the other
images of its batch. Losses train through them and metrics compare sets of them, so values outside [-1, 1], which an
unfinished sample may have, go through; rounding to 8 bits and refusing unbounded values is the metrics' business.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from fewstep.errors import DtypeError, ShapeError

__all__ = ["Features", "check_images"]


@runtime_checkable
class Features(Protocol):
    """A differentiable map from images to vectors."""

    @property
    def name(self) -> str:
        """Name for tables; it changes whenever the features do."""
        ...

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: floating point, shape (b, c, h, w), in [-1, 1].

        Returns:
            Features, shape (b, dim).
        """
        ...


def check_images(images: Tensor, who: str, channels: int, size: tuple[int, int] | None = None) -> None:
    """Refuse what is not a batch of images for these features; no value is read, so no device waits.

    Args:
        images: what the features were called with.
        who: name of the features, for the message.
        channels: number of channels they read.
        size: height and width they read, or None for any from 4 pixels on.

    Raises:
        DtypeError: if the images are not floating point.
        ShapeError: if they are not (b, c, h, w), or c, h or w does not fit.
    """
    if not images.dtype.is_floating_point:
        raise DtypeError(
            f"Images of dtype {images.dtype} for the features {who}",
            "Features read floating-point images in [-1, 1]",
            "Turn 8-bit images into floats: images.float() / 127.5 - 1",
        )
    h_w = tuple(images.shape[2:])
    fits = images.ndim == 4 and images.shape[1] == channels and (h_w == size if size else min(h_w) >= 4)
    if not fits:
        allowed = f"(b, {channels}, {size[0]}, {size[1]})" if size else f"(b, {channels}, h, w) with h and w >= 4"
        raise ShapeError(
            f"Images of shape {tuple(images.shape)} for the features {who}",
            f"They read images of shape {allowed}",
            "Bring the images to that shape, or choose features made for theirs",
        )
