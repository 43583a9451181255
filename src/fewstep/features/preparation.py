r"""What a checkpoint of another library does to images before its network sees them, on tensors.

The numbers are those of the checkpoint's own image processor up to its rounding to 8 bits, and gradients go through.

.. math:: z = \left(\frac{x' + 1}{2} - m\right) / s, \qquad x' = \mathrm{crop}(\mathrm{resize}(x))

with the checkpoint's mean m and deviation s per channel. What bicubic interpolation overshoots is clipped to [-1, 1]
after each axis, as on 8-bit pictures, but an image that itself leaves that range keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fewstep._files import require
from fewstep.errors import CheckpointError

__all__ = ["Preparation", "read_preparation"]

_RESAMPLES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers for the two filters that torch has with antialiasing


@dataclass(frozen=True)
class Preparation:
    """What is done to images before a network sees them.

    Args:
        crop: height and width that the network reads.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        resample: "bicubic" or "bilinear"; always antialiased.
        edge: bring the shorter edge to this length, at least that of `crop`, and cut out the centre; None: stretch to
            `crop`, nothing cut off.
    """

    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str = "bicubic"
    edge: int | None = None

    def __str__(self) -> str:
        size = f"{self.crop[0]}x{self.crop[1]}"
        how = f"{size}, aspect not kept" if self.edge is None else f"shorter edge {self.edge}, centre crop {size}"
        return f"{self.resample} antialiased to {how}"

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images (b, c, h, w) in [-1, 1], giving (b, c, *crop), normalised."""
        low, high = images.detach().amin((1, 2, 3), keepdim=True), images.detach().amax((1, 2, 3), keepdim=True)
        h, w = images.shape[-2:]
        size = self._size(h, w)
        for step in ((h, size[1]), size):  # width first, clipped in between, as PIL does it
            if step != images.shape[-2:]:
                images = F.interpolate(images, step, mode=self.resample, antialias=True)
                images = images.clamp(low.clamp(max=-1), high.clamp(min=1))
        top, left = ((side - kept) // 2 for side, kept in zip(size, self.crop, strict=True))
        images = images[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (images.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return ((images + 1) / 2 - mean) / std

    def _size(self, h: int, w: int) -> tuple[int, int]:
        if self.edge is None:
            return self.crop
        short = min(h, w)
        return self.edge * h // short, self.edge * w // short


def read_preparation(place: str, *, whole: bool = False) -> Preparation:
    """Read how a checkpoint prepares images.

    Args:
        place: folder or hub id, with a preprocessor_config.json.
        whole: take over its numbers, but stretch the whole image to the size of its crop.

    Returns:
        The preparation.

    Raises:
        CheckpointError: if it says something that a :class:`Preparation` cannot do.
    """
    mixin = require("transformers.image_processing_base", "vision").ImageProcessingMixin
    content, _ = mixin.get_image_processor_dict(place)
    size, crop = _sides(content, "size"), _sides(content, "crop_size")
    edge, cropped = size.get("shortest_edge"), content.get("do_center_crop", bool(crop))
    target = crop if cropped else size
    followed = (
        all(content.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize"))
        and content.get("resample", 3) in _RESAMPLES
        and target.keys() == {"height", "width"}
        and (not cropped or (edge is not None and edge >= max(target.values())))
    )
    if not followed:
        raise CheckpointError(
            f"The preprocessor_config.json of {place} cannot be followed (size {size}, crop_size {crop}, resample "
            f"{content.get('resample')})",
            "Images are resized, bicubic or bilinear, by their shorter edge and cropped to less, or to height x width, "
            "and normalised",
            "Take another checkpoint of this model",
        )
    return Preparation(
        crop=(target["height"], target["width"]),
        mean=tuple(content["image_mean"]),
        std=tuple(content["image_std"]),
        resample=_RESAMPLES[content.get("resample", 3)],
        edge=None if whole else edge,
    )


def _sides(content: Mapping[str, Any], key: str) -> dict[str, int]:
    """A size as old (a number) or new (named sides) configurations write it."""
    value = content.get(key) or {}
    if isinstance(value, int):
        return {"shortest_edge": value} if key == "size" else {"height": value, "width": value}
    return {side: length for side, length in value.items() if length is not None}
