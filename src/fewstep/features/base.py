"""What a feature extractor is, and the checks that all of them make.

Features map images to vectors, differentiably and image by image: the vector of an image does not depend on the other
images of its batch. Losses train through them and metrics compare sets of them, so values outside [-1, 1], which an
unfinished sample may have, go through; rounding to 8 bits and refusing unbounded values is the metrics' business.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from fewstep.errors import DtypeError, ShapeError

__all__ = ["Classifying", "Features", "check_images"]


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

    @property
    def resize(self) -> str:
        """How images are brought to the size that is read: "none", or words that say it exactly."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: floating point, shape (b, c, h, w), in [-1, 1].

        Returns:
            Features, shape (b, dim).
        """
        ...


@runtime_checkable
class Classifying(Features, Protocol):
    """Features that a classifier reads, so that one pass over the images gives vectors and classes."""

    def logits_of(self, features: Tensor) -> Tensor:
        """Turn feature vectors into class logits.

        Args:
            features: what this object returned, shape (b, dim).

        Returns:
            Logits, shape (b, n_classes).
        """
        ...


def check_images(
    images: Tensor, who: str, channels: int, size: tuple[int, int] | None = None, *, least: int = 4
) -> None:
    """Refuse what is not a batch of images for these features; no value is read, so no device waits.

    Args:
        images: what the features were called with.
        who: name of the features, for the message.
        channels: number of channels they read.
        size: height and width they read, or None for any.
        least: the fewest pixels a side, where any size is read.

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
    fits = images.ndim == 4 and images.shape[1] == channels and (h_w == size if size else min(h_w) >= least)
    if not fits:
        any_size = f"(b, {channels}, h, w) with h and w >= {least}"
        allowed = f"(b, {channels}, {size[0]}, {size[1]})" if size else any_size
        raise ShapeError(
            f"Images of shape {tuple(images.shape)} for the features {who}",
            f"They read images of shape {allowed}",
            "Bring the images to that shape, or choose features made for theirs",
        )
