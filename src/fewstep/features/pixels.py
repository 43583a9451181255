"""The plainest features: the pixels themselves.

A Fréchet distance on pixels compares the mean image and the covariance of all pairs of pixels. It needs no network and
nobody can doubt it, but it is blind to everything beyond second moments. Pixels that never change, like the corners of
a digit, make the covariance singular.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

from fewstep.errors import ShapeError
from fewstep.features.base import check_images

__all__ = ["Pixels"]


@dataclass(frozen=True)
class Pixels:
    """Flattened images of one shape.

    Args:
        shape: (c, h, w) of an image.

    Raises:
        ShapeError: if the shape is not three positive numbers.
    """

    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        """Refuse shapes that no image has."""
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ShapeError(
                f"Pixels of images of shape {self.shape}", "A shape is (c, h, w), all positive", "Pass e.g. (1, 28, 28)"
            )

    @property
    def name(self) -> str:
        """Name for tables: "pixels 1x28x28"."""
        return "pixels " + "x".join(str(side) for side in self.shape)

    @property
    def dim(self) -> int:
        """Number of pixels times channels."""
        return prod(self.shape)

    @property
    def resize(self) -> str:
        """Nothing is resized: "none"."""
        return "none"

    def __call__(self, images: Tensor) -> Tensor:
        """Flatten the images.

        Args:
            images: floating point, shape (b, *shape), in [-1, 1].

        Returns:
            Pixels, shape (b, dim), same dtype.

        Raises:
            DtypeError: if the images are not floating point.
            ShapeError: if they have another shape.
        """
        check_images(images, self.name, self.shape[0], self.shape[1:])
        return images.flatten(1)
