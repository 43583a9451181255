r"""A convolutional network with random weights that are never trained.

Three convolutions of strides 1, 2 and 2 with SiLU in between, drawn from a seed with the variance that keeps the
activations at unit scale, and a 2 x 2 mean pool. Untrained filters already answer to edges, strokes and their density,
need no data and no download, and so make a distance that works on any kind of image from the first minute on.

.. math:: w_{ij} \sim N(0, g^2 / n_{in}), \qquad g^2 = 1 / E[\mathrm{silu}(z)^2] \approx 2.81, \quad z \sim N(0, 1)
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.errors import ConfigError
from fewstep.features.base import check_images

__all__ = ["RandomConv"]

_GAIN = 1.676  # 1 / sqrt(E[silu(z)^2]) for standard normal z
_WIDTHS = (32, 64)


class RandomConv(nn.Module):
    """Fixed random convolutional features, the same on every machine for the same arguments.

    The weights are buffers: no optimiser sees them, and `.to()` moves them.

    Args:
        channels: channels of an image.
        dim: number of features, a multiple of 4.
        seed: of the weights.

    Raises:
        ConfigError: if channels < 1 or dim is no positive multiple of 4.
    """

    resize = "none"

    def __init__(self, channels: int, dim: int = 64, seed: int = 0) -> None:
        super().__init__()
        if channels < 1 or dim < 4 or dim % 4:
            raise ConfigError(
                f"RandomConv with channels = {channels}, dim = {dim}",
                "channels is positive and dim a positive multiple of 4 (one quarter of an image each)",
                "Choose for instance dim=64",
            )
        self.channels, self.dim, self.seed = channels, dim, seed
        self.name = f"random-conv {channels}ch {dim}-d seed {seed}"
        generator = torch.Generator().manual_seed(seed)
        widths = (channels, *_WIDTHS, dim // 4)
        for i, (c_in, c_out) in enumerate(pairwise(widths)):
            gain = (1.0 if i == 0 else _GAIN) / (9 * c_in) ** 0.5
            self.register_buffer(f"weight{i}", gain * torch.randn(c_out, c_in, 3, 3, generator=generator))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Compute the activations of the three layers, at full, half and a quarter of the size.

        Args:
            images: floating point, shape (b, channels, h, w) with h, w >= 4, in [-1, 1].

        Returns:
            Maps of 32, 64 and dim / 4 channels, in the dtype of the weights.

        Raises:
            DtypeError: if the images are not floating point.
            ShapeError: if they have another number of channels or are smaller.
        """
        check_images(images, self.name, self.channels)
        weights, found = list(self.buffers()), []
        h = images.to(weights[0].dtype)
        for i, weight in enumerate(weights):
            h = F.silu(F.conv2d(h, weight, stride=2 if i else 1, padding=1))
            found.append(h)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: as for :meth:`maps`. At 4 pixels a side the four quarters are the same numbers; they differ from 5
                on.

        Returns:
            Features, shape (b, dim), in the dtype of the weights.

        Raises:
            DtypeError: as there.
            ShapeError: as there.
        """
        return F.adaptive_avg_pool2d(self.maps(images)[-1], 2).flatten(1)
