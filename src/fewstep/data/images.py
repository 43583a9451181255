r"""Images in memory: 8-bit storage, float batches in [-1, 1].

.. math:: x = u / 127.5 - 1, \qquad u = \mathrm{round}(127.5\,(x + 1)) \text{ clipped to } 0..255

The two maps are exact inverses on all 256 values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import DataError, choose
from fewstep.networks import Vocabulary

__all__ = ["Batch", "ImageData", "Images", "to_uint8", "to_unit"]


def to_unit(images: Tensor) -> Tensor:
    """Map 8-bit images of any shape to float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Round images in [-1, 1], of any shape, to 8 bits; what lies outside is clipped."""
    return ((x.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Batch:
    """What an objective sees of the data.

    Args:
        x0: images, shape (b, c, h, w), float32 in [-1, 1].
        cond: conditions with the batch first, or None.
    """

    x0: Tensor
    cond: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.x0)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        cond = {name: value.to(device, non_blocking=True) for name, value in self.cond.items()} if self.cond else None
        return Batch(self.x0.to(device, non_blocking=True), cond)

    def told(self, names: Collection[str]) -> Batch:
        """Keep some conditions and no others.

        Args:
            names: of the conditions.

        Returns:
            The batch with them.

        Raises:
            UnknownName: if the batch has no such condition.
        """
        given = self.cond or {}
        return Batch(self.x0, {name: choose(name, given, "condition") for name in names} or None)


class Images(Protocol):
    """What a model can be trained on: numbered images of one size, told apart by nothing, by classes or by captions."""

    @property
    def name(self) -> str:
        """What the data set is called in reports."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a batch then has the condition "label"."""
        ...

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Words of the captions; a batch then has the condition "tokens"."""
        ...

    def __len__(self) -> int:
        """How many images an epoch has."""
        ...

    def batch(self, indices: Tensor, mirrored: Tensor | None = None) -> Batch:
        """Take the images of some numbers, shape (b,), some of them mirrored left to right where bool (b,) says so."""
        ...


@dataclass(frozen=True)
class ImageData:
    """A data set of images of one size, held in memory as bytes.

    Args:
        images: uint8, shape (n, c, h, w), at least one image.
        labels: int64 class indices, shape (n,), or None.
        classes: names of the classes; empty without labels.
        name: what the data set is called in reports.

    Raises:
        DataError: if the parts do not fit together.
    """

    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or len(self.images) == 0:
            raise DataError(
                f"The data set {self.name!r} holds {self.images.dtype} of shape {tuple(self.images.shape)}",
                "Images are uint8 of shape (n, c, h, w) with n of at least 1",
                "Convert the images with fewstep.data.to_uint8 and stack them",
            )
        if not self._labels_fit():
            raise DataError(
                f"The data set {self.name!r} has {len(self.images)} images, {len(self.classes)} classes and "
                + ("no labels" if self.labels is None else f"{self.labels.dtype} labels of shape {self.labels.shape}"),
                "There is one int64 label per image, from 0 to the number of classes - 1",
                "Correct the labels or the names of the classes",
            )

    def _labels_fit(self) -> bool:
        labels = self.labels
        if labels is None:
            return not self.classes
        if labels.shape != (len(self.images),) or labels.dtype != torch.int64:
            return False
        return 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def vocabulary(self) -> None:
        """Images in memory have no captions."""
        return None

    @property
    def n_classes(self) -> int:
        """How many classes there are; 0 without labels."""
        return len(self.classes) if self.labels is not None else 0

    def batch(self, indices: Tensor, mirrored: Tensor | None = None) -> Batch:
        """Take some images.

        Args:
            indices: which ones, int64, shape (b,).
            mirrored: bool, shape (b,): which of them to mirror left to right.

        Returns:
            The images and, when there are labels, their class condition.
        """
        x0 = to_unit(self.images[indices])
        if mirrored is not None:
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        return Batch(x0, {"label": self.labels[indices]} if self.labels is not None else None)
