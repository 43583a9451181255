r"""Perceptual losses: how different two images are in the maps of a network, place by place.

.. math:: d(a, b) = \frac1L \sum_l \frac{1}{H_l W_l} \sum_{h, w, c} (\hat y^l_{hwc}(a) - \hat y^l_{hwc}(b))^2,

with activations of unit length along the channels. LPIPS is the same with a learned weight for each channel. Like any
paired loss they draw samples of independent noise to one image, here the mean in their maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewstep.denoisers import Cond
from fewstep.errors import ShapeError
from fewstep.features import Lpips, Maps, as_rgb
from fewstep.losses.base import difference, precise

__all__ = ["LearnedLpips", "Perceptual"]


@dataclass(frozen=True)
class Perceptual:
    """Mean squared distance of maps.

    Args:
        maps: what is compared.
        normalise: compare directions along the channels and sum over these, as LPIPS does; otherwise the activations
            themselves, and the mean over the channels too.

    Source:
        Zhang et al. 2018, arXiv:1801.03924, Eq. 1. Departs from it in: no learned weights, the mean over layers, any
        maps, and division by max(length, 1e-10), which keeps gradients finite where all channels are silent.
    """

    maps: Maps
    normalise: bool = True

    def __call__(self, fake: Tensor, target: Tensor, cond: Cond = None) -> Tensor:
        """Compare images pairwise.

        Args:
            fake: images that the maps read, shape (b, c, h, w), in [-1, 1].
            target: same shape.
            cond: conditions, batch first, for maps that look at them.

        Returns:
            Distances, shape (b,), >= 0, 0 for equal images. Differentiable in both.

        Raises:
            ShapeError: if the maps cannot read the images, or have one channel, which has no direction.
        """
        pairs = zip(self.maps(fake, cond), self.maps(target, cond), strict=True)
        return torch.stack([self._of_layer(*pair) for pair in pairs]).mean(0)

    def _of_layer(self, a: Tensor, b: Tensor) -> Tensor:
        if not self.normalise:
            return difference(a, b).square().flatten(1).mean(1)
        channels = a.shape[1]
        if channels < 2:
            raise ShapeError(
                f"Normalised maps of shape {tuple(a.shape)} from {self.maps.name}",
                "Directions need at least two channels",
                "Use normalise=False, or other maps",
            )
        a, b = (functional.normalize(precise(of), dim=1, eps=1e-10) for of in (a, b))
        return channels * difference(a, b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class LearnedLpips:
    """LPIPS with its learned weights as a loss; grey images are made RGB.

    Args:
        lpips: see ``load_lpips``.
    """

    lpips: Lpips

    def __call__(self, fake: Tensor, target: Tensor, cond: Cond = None) -> Tensor:
        """Compare images (b, c, h, w) of 1 or 3 channels and h, w >= 17 pairwise: (b,); ShapeError for others."""
        distance: Tensor = self.lpips(as_rgb(fake), as_rgb(target))
        return distance
